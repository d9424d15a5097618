"""What is to be done about a stage, and doing it: train or resume it, measure it, hold it against its exit gate.

    decide(config, "align")                      # skip, train or resume, and why
    train_stage(config, "align", launch, print)

What a stage was made from is kept as digests in its folder (``stage.json``): its configuration, its data, and the
checkpoints it starts from. The same inputs are not trained twice; other inputs put the old result aside and train
anew. Where a stage's processes run is up to ``launch`` (`executor`).
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from megatron_af.config import Config, ConfigError
from megatron_af.config.errors import suggestion
from megatron_af.pipeline.job import StepFailed
from megatron_af.runs.identity import check_resume, evaluation_inputs, stage_inputs
from megatron_af.runs.lock import StageBusy, ensure_free
from megatron_af.runs.objectives import spec_of
from megatron_af.runs.paths import CheckpointError, ended_early, latest, outcome, read_result, read_resume
from megatron_af.runs.pointers import checkpoint_digest
from megatron_af.runs.records import StageRecord, put_aside
from megatron_af.runs.results import Results, are_of
from megatron_af.runs.sizes import planned_steps, recorded_batch
from megatron_af.runs.whole import unreadable
from megatron_af.tracking.evaluation import log_evaluation
from megatron_af.tracking.runs import end_lost_run, stage_spool
from megatron_af.tracking.spool import Spool

type Say = Callable[[str], None]
type Launch = Callable[..., None]
"""Runs a tool on the stage's processes: ``launch("pretrain_af.py", *arguments)``; raises `StepFailed`."""


class ExitGateFailed(StepFailed):
    """A stage is trained, but its numbers are not good enough to build on."""

    def __init__(self, message: str, *, give_up: bool = False) -> None:
        super().__init__(message, give_up=give_up)
        self.exit_code = 4


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is to be done about a stage, and why."""

    stage: str
    action: Literal["skip", "train", "resume", "blocked"]
    why: str
    inputs: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.stage:<12} {self.action:<7} {self.why}"


def decide(config: Config, stage: str) -> Step:
    """What to do about a stage whose parents are as they should be.

    Raises ``FileNotFoundError`` or ``KeyError`` for data or parent checkpoints that are missing, naming the key, and
    ``ConfigError`` where a checkpoint that nothing is recorded of is another run's.
    """
    inputs = stage_inputs(config, stage)
    folder = config.stage_folder(stage)
    record = StageRecord.load(folder)
    try:
        newest = latest(folder / "checkpoints")
        damaged = "" if newest is None else unreadable(newest)
    except CheckpointError as error:
        newest, damaged = None, str(error)
    changed = _changed(config, stage, inputs, record, newest) if record is not None else []
    if damaged and not changed:
        action, why = "resume", f"its newest checkpoint is damaged, so it goes on from one before: {damaged}"
    elif record is None and newest is not None:
        check_resume(replace(config, stage=stage), newest)
        action, why = "resume", "has a checkpoint, but not its end"
    elif record is None:
        action, why = "train", "not trained yet"
    elif changed:
        action, why = "train", f"changed: {', '.join(changed)}"
    elif newest is None:
        why = f"its checkpoint {record.checkpoint} is gone" if record.done else "did not reach a checkpoint"
        action = "train"
    else:
        action, why = _go_on(config, stage, newest, record)
    known = inputs if record is None or changed else record.inputs  # with places as they were recorded
    return Step(stage=stage, action=action, why=why, inputs=known)  # type: ignore[arg-type]


def _changed(config: Config, stage: str, inputs: dict[str, str], record: StageRecord, newest: Path | None) -> list[str]:
    """Names of what the stage is made from and that is not as it was; the same files in another place are as they
    were."""
    names = sorted(name for name in inputs | record.inputs if inputs.get(name) != record.inputs.get(name))
    if names == ["config"] and newest is not None:
        with suppress(ConfigError):
            check_resume(replace(config, stage=stage), newest, record.inputs)
            return []
    return names


def _go_on(config: Config, stage: str, newest: Path, record: StageRecord) -> tuple[str, str]:
    """Of a stage that is the same as before: is there anything left of it?"""
    settings = config.curriculum[stage]
    if settings.batch_tokens:
        settings = replace(settings, global_batch_samples=recorded_batch(config, stage))
    steps, reached = planned_steps(config, settings), read_resume(newest)["step"]
    if reached < steps and not ended_early(settings, newest):
        return "resume", f"has {reached} of {steps} steps" if record.done else "did not come to its end"
    if not record.done or not read_result(config.stage_folder(stage)):
        return "resume", "has its last checkpoint, but not its end"
    made = outcome(config, stage) or newest
    if made.name != record.checkpoint or checkpoint_digest(made) != record.digest:
        return "resume", f"{made.name} was written since it was done, and is not measured yet"
    longer = f" ({steps} steps were asked for; a shorter stage needs another name=)" if reached > steps else ""
    return "skip", f"done: {made.name}{longer}"


def train_stage(config: Config, stage: str, launch: Launch, say: Say) -> None:
    """Train or resume a stage unless it is done. Raises `StepFailed`, and what :func:`decide` raises."""
    step, folder = decide(config, stage), config.stage_folder(stage)
    say(f"{step.action}: {step.why}")
    if step.action == "skip":
        return
    try:
        ensure_free(folder)
    except StageBusy as busy:
        raise StepFailed(str(busy)) from busy
    record = StageRecord.load(folder)
    if record is not None and record.inputs != step.inputs:
        put_aside(folder)
        record = None
    record = StageRecord(inputs=step.inputs, seconds=record.seconds if record else 0.0)
    record.save(folder)
    started = time.monotonic()
    try:
        launch("pretrain_af.py")
    except StepFailed as failure:
        if not failure.goes_on:
            end_lost_run(config, stage, step.inputs)
        raise
    finally:
        record = replace(record, seconds=record.seconds + time.monotonic() - started)
        record.save(folder)
    checkpoint = outcome(config, stage)
    if checkpoint is None:
        raise CheckpointError(f"stage {stage} ended well but wrote no checkpoint into {folder / 'checkpoints'}")
    replace(record, done=True, checkpoint=checkpoint.name, digest=checkpoint_digest(checkpoint)).save(folder)


def measure_stage(config: Config, stage: str, launch: Launch, parent: Spool | None) -> dict[str, float]:
    """Metrics of a trained stage: of its last steps, and of its evaluation, which runs unless its results are there.

    With the curriculum's spool as ``parent`` they also go to the stage's run in MLflow, and their totals to its parent.
    """
    settings, folder = config.curriculum[stage], config.stage_folder(stage)
    record = StageRecord.load(folder)
    assert record is not None, "only a trained stage is measured"
    measured = f"{record.digest} on {evaluation_inputs(config, stage)}" if settings.is_measured else record.evaluated
    if record.evaluated != measured or (settings.is_measured and not are_of(config, stage, record.digest)):
        for tool, more in spec_of(settings).evaluations(config, stage):
            launch(tool, *more)
        replace(record, evaluated=measured).save(folder)
        if parent is not None:
            log_evaluation(config, stage, Spool(stage_spool(config, stage, record.inputs)), parent)
    return read_result(folder) | Results.load(folder, record.digest if settings.is_measured else "").metrics


def hold_against_gate(config: Config, stage: str, metrics: Mapping[str, float]) -> None:
    """Raises ``ExitGateFailed`` with every bound that a stage's metrics do not keep."""
    problems = []
    for name, bounds in config.curriculum[stage].exit_gate.items():
        if name not in metrics:
            known = sorted(metrics)
            raise ConfigError(f"curriculum.{stage}.exit_gate.{name}: nobody logs it{suggestion(name, known)}")
        value = metrics[name]
        if bounds.min is not None and not value >= bounds.min:
            problems.append(f"{name} = {value:.4g}, expected at least {bounds.min:g}")
        if bounds.max is not None and not value <= bounds.max:
            problems.append(f"{name} = {value:.4g}, expected at most {bounds.max:g}")
    if problems:
        raise ExitGateFailed(
            f"stage {stage} is trained but does not pass its exit gate: {'; '.join(problems)}. "
            f"Train it longer or otherwise, or change curriculum.{stage}.exit_gate",
            give_up=True,
        )
