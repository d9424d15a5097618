"""Promotion gates: what a version has to show, written in a YAML file before it is asked.

    gates = read_gates("configs/gates/demo.yaml")
    verdicts = judge(gates, candidate, champion, Trials(load=…, export=…))
    refused = [verdict for verdict in verdicts if not verdict.passed]

The file:

    gates:
      hears:        {metric: overall/audio, over: overall/exchanged, min: 20}
      enough_asked: {metric: skills/*/n, min: 30}
      no_worse:     {score: correct, margin: 0.02}
      serves:       {answer_seconds: 30}
      exports:      {export_answers: 8}
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from megatron_af.config import ConfigError
from megatron_af.config.errors import suggestion
from megatron_af.config.loading import CONFIGS, read_values
from megatron_af.evaluate.intervals import resampled_means
from megatron_af.runs.results import Results

RESAMPLES = 4_000


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """One gate; ``metric``, ``score``, ``answer_seconds`` or ``export_answers`` says of which kind."""

    metric: str = ""
    """Number of the evaluation that has to lie within ``min`` and ``max``; with ``*`` every one that matches."""
    over: str = ""
    """A second number: the gate is on how far ``metric`` lies above it."""
    min: float | None = None
    max: float | None = None
    score: str = ""
    """Score by sample that must not fall behind the champion's."""
    margin: float = 0.0
    """How much of the mean score may be lost to it, in the score's unit."""
    confidence: float = 0.95
    """Probability (bootstrap over groups of samples) with which no more than ``margin`` is lost."""
    answer_seconds: float = 0.0
    """The served model is loaded in a process of its own and has to answer its example within this time."""
    export_answers: int = 0
    """Questions that the exported folder (``tools/export.py``), loaded in a process without this project, has to
    answer as the version itself does."""


@dataclass(frozen=True, kw_only=True)
class Gates:
    gates: dict[str, GateConfig] = field(default_factory=dict)
    """Name of the gate -> what it asks."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one gate said."""

    gate: str
    passed: bool
    finding: str
    """What was asked, what was found, and by how much it missed."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What is tried with a version, and only where a gate asks for it."""

    load: Callable[[], tuple[float, str]]
    """Loads the served model and lets it answer: seconds of the answer, and what went wrong (empty: nothing)."""
    export: Callable[[int], str]
    """Exports the version and compares this many answers: what went wrong."""


def read_gates(path: str) -> Gates:
    """Read a file of gates. Raises ``ConfigError`` with every problem in it."""
    if not path:
        raise ConfigError("no gates", ["registry.gates: expected a file of promotion gates, got nothing; name one"])
    file = Path(path) if Path(path).is_file() else CONFIGS / path
    gates = read_values(Gates, file)
    problems = [f"gates.{name}: {problem}" for name, gate in gates.gates.items() for problem in _problems(gate)]
    if not gates.gates:
        problems.append("gates: expected at least one; a version that nothing asks of cannot be promoted")
    if problems:
        raise ConfigError(f"{file} cannot be used", problems)
    return gates


def judge(gates: Gates, candidate: Results, champion: Results | None, trials: Trials) -> list[Verdict]:
    """The verdict of every gate.

    Args:
        champion: results of the version in production; None where there is none, and nothing to fall behind.

    Raises:
        ConfigError: a gate asks for a number that the candidate's evaluation does not hold.
    """
    if not candidate.metrics and not candidate.samples:
        return [Verdict(gate="evaluation", passed=False, finding="the version has no evaluation; run it and register")]
    problems = [
        f"gates.{name}.{key}: nobody logs {wanted}{suggestion(wanted, known)}"
        for name, gate in gates.gates.items()
        for key, wanted, known in _asked_for(gate, candidate)
        if not any(fnmatchcase(have, wanted) for have in known)
    ]
    if problems:
        raise ConfigError("the gates do not fit the evaluation", problems)
    verdicts: list[Verdict] = []
    for name, gate in gates.gates.items():
        if gate.score:
            verdicts.append(_compare(name, gate, candidate, champion))
        elif gate.metric:
            verdicts += _bounded(name, gate, candidate.metrics)
        elif gate.export_answers:
            verdicts.append(_exports(name, gate, trials))
        else:
            verdicts.append(_answers(name, gate, trials))
    return verdicts


def bootstrap_lower_bound(differences: np.ndarray, groups: np.ndarray, confidence: float) -> float:
    """Lower confidence bound of the mean of ``differences``, resampling whole groups.

    Args:
        differences: one number per sample, [samples].
        groups: index from 0 of each sample's group, [samples].
    """
    means = resampled_means(np.bincount(groups, differences), np.bincount(groups), count=RESAMPLES)
    return float(np.quantile(means, 1 - confidence))


def _bounded(name: str, gate: GateConfig, metrics: dict[str, float]) -> list[Verdict]:
    verdicts = []
    for metric in sorted(have for have in metrics if fnmatchcase(have, gate.metric)):
        value = metrics[metric] - (metrics[gate.over] if gate.over else 0.0)
        found = f"{metric} - {gate.over} = {value:.4g}" if gate.over else f"{metric} = {value:.4g}"
        if not math.isfinite(value):
            verdicts.append(Verdict(gate=name, passed=False, finding=f"{found}, expected a finite number"))
        elif gate.min is not None and value < gate.min:
            short = f"{found}, expected at least {gate.min:g}: short by {gate.min - value:.4g}"
            verdicts.append(Verdict(gate=name, passed=False, finding=short))
        elif gate.max is not None and value > gate.max:
            above = f"{found}, expected at most {gate.max:g}: too much by {value - gate.max:.4g}"
            verdicts.append(Verdict(gate=name, passed=False, finding=above))
        else:
            verdicts.append(Verdict(gate=name, passed=True, finding=found))
    return verdicts


def _compare(name: str, gate: GateConfig, candidate: Results, champion: Results | None) -> Verdict:
    if champion is None:
        return Verdict(gate=name, passed=True, finding="no champion to fall behind")
    ours, theirs = candidate.scores(gate.score), champion.scores(gate.score)
    if ours.keys() != theirs.keys():
        finding = (
            f"{gate.score}: expected the champion's samples, got {len(ours.keys() - theirs.keys())} that it lacks and "
            f"{len(theirs.keys() - ours.keys())} missing; evaluate both on the same data"
        )
        return Verdict(gate=name, passed=False, finding=finding)
    if candidate.asked != champion.asked and candidate.asked and champion.asked:
        finding = f"{gate.score}: measured on {candidate.asked}, the champion on {champion.asked}; evaluate both alike"
        return Verdict(gate=name, passed=False, finding=finding)
    ids = sorted(ours)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(ours[id][0] for id in ids))}
    differences = np.array([ours[id][1] - theirs[id][1] for id in ids])
    bound = bootstrap_lower_bound(differences, np.array([numbers[ours[id][0]] for id in ids]), gate.confidence)
    finding = (
        f"{gate.score}: {differences.mean():+.4g} against the champion over {len(ids)} samples, with "
        f"{gate.confidence:.0%} confidence at least {bound:+.4g}"
    )
    if not bound >= -gate.margin:  # nor is a score that is no number
        finding += f", expected at least {-gate.margin:+g}: short by {-gate.margin - bound:.4g}"
    return Verdict(gate=name, passed=bool(bound >= -gate.margin), finding=finding)


def _answers(name: str, gate: GateConfig, trials: Trials) -> Verdict:
    seconds, trouble = trials.load()
    if trouble:
        return Verdict(gate=name, passed=False, finding=f"the served model does not answer: {trouble}")
    finding = f"the served model answers in {seconds:.2f} s"
    if seconds > gate.answer_seconds:
        finding += f", expected at most {gate.answer_seconds:g}: too slow by {seconds - gate.answer_seconds:.2f}"
    return Verdict(gate=name, passed=seconds <= gate.answer_seconds, finding=finding)


def _exports(name: str, gate: GateConfig, trials: Trials) -> Verdict:
    if trouble := trials.export(gate.export_answers):
        return Verdict(gate=name, passed=False, finding=trouble)
    return Verdict(gate=name, passed=True, finding=f"exported, it gives the same {gate.export_answers} answers")


def _asked_for(gate: GateConfig, results: Results) -> list[tuple[str, str, list[str]]]:
    """(key, name, what there is) of every number that a gate needs."""
    metrics, scores = sorted(results.metrics), results.score_names()
    wanted = [("metric", gate.metric, metrics), ("over", gate.over, metrics), ("score", gate.score, scores)]
    return [(key, name, known) for key, name, known in wanted if name]


def _problems(gate: GateConfig) -> list[str]:
    kinds = [bool(gate.metric), bool(gate.score), gate.answer_seconds > 0, gate.export_answers > 0]
    problems = []
    if sum(kinds) != 1:
        problems.append("expected one of metric, score, answer_seconds and export_answers, which say what kind it is")
    if gate.metric and gate.min is None and gate.max is None:
        problems.append("min, max: expected at least one bound for a metric")
    if gate.min is not None and gate.max is not None and gate.min > gate.max:
        problems.append(f"min {gate.min:g} lies above max {gate.max:g}; nothing can pass")
    if not 0.5 <= gate.confidence < 1:
        problems.append(f"confidence: expected 0.5 up to 1, got {gate.confidence:g}")
    if gate.margin < 0:
        problems.append(f"margin: expected 0 or more, got {gate.margin:g}")
    return problems
