"""The evaluation of a stage as it lies in its folder: numbers by name, and scores by sample.

    results = Results.load(config.stage_folder("long"))
    results.metrics["test/overall/audio"], results.scores("right")

``hearing.json`` holds numbers at any depth, the data set first: ``{"test": {"overall": {"audio": 52.1}}}`` is the
metric ``test/overall/audio``; ``clap-test.json`` and ``suite-esc50.json`` the same for one data set or benchmark.
``answers.jsonl`` has a line per sample:
``{"id": "test/17", "group": "test/scene-7", "right": 1, …}``; every number in it is a score, and samples of one group
(questions about one scene) are no independent ones.

``suite-esc50.parquet`` has the questions of a benchmark, with what each answer was worth. ``calibration.json`` says how
sure an answer must be (``calibration.py``).

``measured.json`` says which weights these files are about, on which rows and settings, by which code, and holds the
files' digests: numbers of one checkpoint are never taken for those of another.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import escape
from math import isnan
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_af.config import Config, StageConfig
from megatron_af.files import write
from megatron_af.foreign import file_at, read_text
from megatron_af.runs.benchmarks import name_of
from megatron_af.runs.calibration import CALIBRATION, VECTORS
from megatron_af.runs.code import code_version
from megatron_af.runs.digests import digest_file
from megatron_af.runs.identity import evaluation_inputs
from megatron_af.runs.objectives import spec_of
from megatron_af.runs.paths import outcome
from megatron_af.runs.pointers import checkpoint_digest

HEARING, CLAP, SUITE, SAMPLES = "hearing.json", "clap-*.json", "suite-*.json", "answers.jsonl"
SUITE_SAMPLES = "suite-*.parquet"
SCORE = "score."
"""Begins the columns of these that say what each answer was worth."""
MEASURED = "measured.json"
STEP_METRICS = (
    *("step", "loss", "grad_norm", "learning_rate", "step_seconds", "tokens_per_second", "audio_seconds_per_second"),
    *("flops_per_second", "mfu", "data_wait", "memory_bytes", "eta_seconds", "watched/loss"),
)
"""What a stage of any objective logs of its steps."""


def metric_patterns(stage: StageConfig) -> list[str]:
    """Names (fnmatch) that a stage's exit gate can know: of its last steps, and of its evaluation."""
    objective = spec_of(stage)
    by_set = [f"{kind}/{escape(dataset)}" for dataset in stage.blend for kind in objective.set_losses]
    measured = [f"{escape(name)}/{metric}" for name in stage.evaluation for metric in objective.set_metrics]
    measured += [f"{escape(name_of(suite))}/*" for suite in stage.suites]
    of_steps = [*STEP_METRICS, *objective.step_metrics]
    if not stage.watch.dataset:
        of_steps = [name for name in of_steps if not name.startswith("watched/")]
    return [*of_steps, *by_set, *measured]


class BadResults(ValueError):
    """An evaluation that cannot be read; the message names the file and line."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    id: str
    group: str
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Results:
    metrics: dict[str, float]
    samples: tuple[Sample, ...] = ()
    asked: str = ""
    """On which rows and settings it was measured (``identity.evaluation_inputs``); empty where nobody recorded it."""

    @classmethod
    def load(cls, folder: Path, weights: str = "") -> "Results":
        """Read what is there; a folder without results gives empty ones.

        Args:
            weights: digest of the checkpoint that the results must be of.

        Raises:
            BadResults: a file cannot be read, or is not of these weights; the message names it.
        """
        if weights:
            _check_weights(folder, weights)
        metrics = dict(numbers_of(_summaries(folder)))
        answers = folder / SAMPLES
        lines = read_text(answers).splitlines() if answers.is_file() else []
        samples = [_sample(line, f"{answers}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
        return cls(
            metrics=metrics,
            samples=(*samples, *(s for file in sorted(folder.glob(SUITE_SAMPLES)) for s in _suite_samples(file))),
            asked=_measured(folder).get("asked", ""),
        )

    def scores(self, name: str) -> dict[str, tuple[str, float]]:
        """Sample id -> (group, score), for the samples that have this score."""
        return {s.id: (s.group, s.scores[name]) for s in self.samples if name in s.scores}

    def score_names(self) -> list[str]:
        return sorted({name for sample in self.samples for name in sample.scores})


def result_files(folder: Path) -> list[Path]:
    """The files that :meth:`Results.load` reads, of those that are there."""
    names = (HEARING, CLAP, SUITE, SAMPLES, SUITE_SAMPLES, CALIBRATION, VECTORS, MEASURED)
    return [file for name in names for file in sorted(folder.glob(name))]


def few_shot_folder(shots: int, source: str) -> str:
    """Where in a stage's folder its results behind examples lie; their names in MLflow begin with it."""
    return f"few_shot/{shots}_from_{source}"


def are_of(config: Config, stage: str, weights: str, folder: Path | None = None) -> bool:
    """Whether results lie in a folder (default: the stage's), of these weights and on what the configuration asks."""
    folder = folder or config.stage_folder(stage)
    measured = _measured(folder)
    asked = measured.get("weights") == weights and measured["asked"] == evaluation_inputs(config, stage)
    return asked and all((folder / name).is_file() for name in measured["files"])


def check_asked(config: Config, stage: str) -> None:
    """Raises ``BadResults`` where a stage was measured on other rows or settings than the configuration has now."""
    folder = config.stage_folder(stage)
    if not config.curriculum[stage].is_measured or not (measured := _measured(folder)):
        return
    if measured["asked"] != (asked := evaluation_inputs(config, stage)):
        raise BadResults(
            f"{folder / MEASURED}: measured on {measured['asked']}, but the rows and settings of curriculum.{stage}."
            f"evaluation are {asked}: measure the stage again"
        )


def bind_results(config: Config, files: Iterable[Path], checkpoint: Path | None = None) -> None:
    """Say of which weights results are; whoever measured a checkpoint calls it when it is done.

    Results of other weights, or on other rows or settings, that lie in their folder from before are not vouched for any
    more: a measurement that was stopped halfway would pass them off as its own.

    Args:
        files: all of one folder: that of ``config.stage``, or anybody's.
        checkpoint: that was measured; None: what the stage came to.
    """
    files = list(files)
    folder = files[0].parent
    checkpoint = checkpoint or outcome(config, config.stage)
    if checkpoint is None:
        raise FileNotFoundError(f"stage {config.stage} has no checkpoint in {folder}; nothing can be measured")
    before, weights = _measured(folder), checkpoint_digest(checkpoint)
    asked = evaluation_inputs(config, config.stage)
    kept = before["files"] if (before.get("weights"), before.get("asked")) == (weights, asked) else {}
    measured = {
        "weights": weights,
        "checkpoint": checkpoint.name,
        "asked": asked,
        "code": code_version(),
        "files": kept | {file.name: digest_file(file) for file in files},
    }
    write(folder / MEASURED, json.dumps(measured, indent=1))


def _measured(folder: Path) -> dict[str, Any]:
    file = folder / MEASURED
    measured: dict[str, Any] = _parse(read_text(file), str(file)) if file.is_file() else {}
    return measured


def _check_weights(folder: Path, weights: str) -> None:
    measured = _measured(folder)
    for file in result_files(folder):
        if file.name == MEASURED:
            continue
        if measured.get("weights", "") != weights:
            of = f"is of {measured['checkpoint']} ({measured['weights'][:19]})" if measured else "names no checkpoint"
            raise BadResults(f"{file} {of}, not of the one with {weights[:19]}: measure the stage again")
        if measured["files"].get(file.name) != digest_file(file):
            raise BadResults(
                f"{file} is not what was measured of {measured['checkpoint']}: measure the stage again, or remove the "
                "file where nothing asks for it any more"
            )


def tables(folder: Path) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Columns and rows of each data set's table, where its numbers stand by skill, and of its confusion of classes."""
    found: dict[str, tuple[list[str], list[list[Any]]]] = {}
    for name, scores in _summaries(folder).items():
        if "intervals" in scores:
            found[name] = _suite_columns(scores)
            continue
        turns = {f"turn {turn}": score for turn, score in scores.get("turns", {}).items()}
        lines = {**scores.get("skills", {}), **turns, "overall": scores.get("overall", {})}
        columns = list(next(iter(lines.values())))
        if columns:
            found[name] = ["skill", *columns], [[skill, *map(line.get, columns)] for skill, line in lines.items()]
        for skill, classes in scores.get("classes", {}).items():
            labels, recall = classes["labels"], classes["recall"]
            columns = ["wanted", *labels, "something else", "recall"]
            confused = zip(labels, classes["counts"], strict=True)
            matrix = [[label, *counts, recall.get(label)] for label, counts in confused]
            found[f"{name}-{re.sub(r'[^\w.-]+', '-', skill)}"] = columns, matrix
    return found


def _suite_columns(scores: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """A benchmark's metrics, of all questions and by skill, or what a contrastive stage can do."""
    unparseable = scores.get("unparseable", {})
    parts = {"": scores, **scores.get("skills", {})}
    rows = []
    for skill, values in parts.items():
        numbers = dict(numbers_of(values))
        rows += [
            [skill, metric, numbers[metric], *(bounds if not skill else (None, None)), unparseable.get(metric)]
            for metric, bounds in scores["intervals"].items()
            if metric in numbers
        ]
    return ["skill", "metric", "value", "from", "to", "unparseable of all"], rows


def _summaries(folder: Path) -> dict[str, Any]:
    """Data set -> its numbers."""
    summaries: dict[str, Any] = {}
    for file in (*folder.glob(HEARING), *sorted(folder.glob(CLAP)), *sorted(folder.glob(SUITE))):
        content = _parse(read_text(file), str(file))
        summaries |= content if file.name == HEARING else {file.stem.partition("-")[2]: content}
    return summaries


def numbers_of(value: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number at any depth, by the names on the way to it."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield prefix, float(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers_of(inner, f"{prefix}/{key}" if prefix else str(key))


def _sample(line: str, where: str) -> Sample:
    record = _parse(line, where)
    if not isinstance(record, dict) or "id" not in record:
        raise BadResults(f'{where}: expected an object with an "id", got {line[:80]}')
    scores = {
        name: float(value)
        for name, value in record.items()
        if name not in ("id", "group") and isinstance(value, int | float)
    }
    identity = str(record["id"])
    return Sample(id=identity, group=str(record.get("group", identity)), scores=scores)


def _suite_samples(file: Path) -> Iterator[Sample]:
    """The questions of a benchmark; a score is called ``esc50/exact``; what was unparseable scores 0, and what nobody
    knows (NaN) is no score."""
    name = file.stem.partition("-")[2]
    try:
        table = pq.read_table(file_at(file))
    except (OSError, pa.ArrowException) as error:
        raise BadResults(f"{file}: no Parquet ({error}); write the evaluation again") from None
    scores = [column for column in table.column_names if column.startswith(SCORE)]
    for line in table.select(["id", "group", *scores]).to_pylist():
        worth = {f"{name}/{score.removeprefix(SCORE)}": float(line[score] or 0) for score in scores}
        own = {score: value for score, value in worth.items() if not isnan(value)}
        yield Sample(id=f"{name}/{line['id']}", group=f"{name}/{line['group']}", scores=own)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadResults(f"{where}: no JSON ({error}); write the evaluation again") from None
