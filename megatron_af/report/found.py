"""What a run left on disk, as its report needs it.

    run = read_run(Path("runs/demo"))
    run.stages[0].history.series("loss"), run.stages[-1].scores["test"]["overall"]

Nothing is made anew: steps come from the run's spools, scores and answers from its evaluations, times from its steps'
records. What a run does not have is empty.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_af.config import Config, StageConfig
from megatron_af.evaluate.intervals import interval
from megatron_af.foreign import read_json, read_text
from megatron_af.inference.looks import Look, read_looks
from megatron_af.pipeline.records import RunFolder, StepRecord
from megatron_af.runs.paths import latest, read_result, read_resume
from megatron_af.runs.records import StageRecord
from megatron_af.runs.results import HEARING, SAMPLES
from megatron_af.serve.places import find
from megatron_af.tracking.pictures import History
from megatron_af.tracking.runs import stage_spool
from megatron_af.tracking.spool import read_spool


@dataclass(frozen=True, kw_only=True)
class StageFound:
    """One stage that was trained."""

    name: str
    settings: StageConfig
    step: int
    """Of its newest checkpoint."""
    seconds: float
    """That its training took."""
    history: History
    result: dict[str, float]
    scores: dict[str, dict[str, Any]]
    """Data set -> what ``hearing.json`` says of it."""
    clap: dict[str, dict[str, Any]]
    """Data set -> what ``clap-SET.json`` says of it."""
    suites: dict[str, dict[str, Any]]
    """Benchmark -> what ``suite-NAME.json`` says of it."""
    answers: dict[str, list[dict[str, Any]]]
    """Data set -> lines of ``answers.jsonl``."""
    looks: dict[str, list[Look]]
    """Data set -> where some answers looked."""


@dataclass(frozen=True, kw_only=True)
class RunFound:
    """A run, as far as it came."""

    config: Config
    stages: tuple[StageFound, ...]
    steps: tuple[StepRecord, ...]
    """Of the pipeline that made it, in the order in which they began."""


def read_run(folder: Path) -> RunFound:
    """Raises ``FileNotFoundError`` where no stage has a checkpoint, and what reading a broken file raises."""
    config, _ = find(folder)
    steps = sorted(RunFolder(config).steps(), key=lambda record: record.started)
    trained = [name for name in config.curriculum if latest(config.stage_folder(name) / "checkpoints") is not None]
    return RunFound(config=config, stages=tuple(_read_stage(config, name) for name in trained), steps=tuple(steps))


def _read_stage(config: Config, name: str) -> StageFound:
    folder, record = config.stage_folder(name), StageRecord.load(config.stage_folder(name))
    newest = latest(folder / "checkpoints")
    assert newest is not None
    answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
    if (folder / SAMPLES).is_file():
        for line in read_text(folder / SAMPLES).splitlines():
            told = json.loads(line)
            answers[told["set"]].append(told)
    pictures = folder / "pictures"
    return StageFound(
        name=name,
        settings=config.curriculum[name],
        step=read_resume(newest)["step"],
        seconds=record.seconds if record else 0.0,
        history=_history(config, name, record),
        result=read_result(folder),
        scores=read_json(folder / HEARING) if (folder / HEARING).is_file() else {},
        clap={file.stem.removeprefix("clap-"): read_json(file) for file in sorted(folder.glob("clap-*.json"))},
        suites={file.stem.removeprefix("suite-"): read_json(file) for file in sorted(folder.glob("suite-*.json"))},
        answers=dict(answers),
        looks={
            file.stem.removeprefix("attention-"): read_looks(file) for file in sorted(pictures.glob("attention-*.json"))
        },
    )


def _history(config: Config, name: str, record: StageRecord | None) -> History:
    history = History()
    if record is not None:
        for told, _ in read_spool(stage_spool(config, name, record.inputs)):
            if told["kind"] == "metrics":
                history.add(told["step"], told["values"])
    return history


def intervals(answers: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Skill -> 95% bootstrap interval of its accuracy in percent; samples of one ``group`` are drawn together."""
    by_skill: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for told in answers:
        by_skill[told["skill"]].append(told)
    return {
        skill: interval([100.0 * told["right"] for told in found], [told["group"] for told in found])
        for skill, found in sorted(by_skill.items())
    }
