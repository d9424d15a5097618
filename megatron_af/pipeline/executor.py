"""What one step of a pipeline does when its turn comes, wherever its processes run.

    metrics = run_step("align", config, Launch(run="demo-1"), ThisMachine(config))
    finish(config, Launch(run="demo-1"), "SUCCEEDED")        # at the end of all

A step that is done is not run again, unless what it is made from changed. For a stage that is decided by `stages`, from
digests of its data and of the checkpoints it starts from. A command is run again as well when a step that it waits for
was: what registers a stage's weights does so of the new ones. Commands are not skipped in a pipeline of their own: who
asks for ``promote`` wants it done now.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from megatron_af.config import Config, ConfigError
from megatron_af.entry import Cancelled, cancellable
from megatron_af.pipeline.graph import StepSpec, pipeline_steps
from megatron_af.pipeline.job import Job, StepFailed
from megatron_af.pipeline.local import launch_local
from megatron_af.pipeline.logs import read_progress
from megatron_af.pipeline.records import CANCELLED, DONE, FAILED, RUNNING, Launch, RunFolder, StepRecord
from megatron_af.pipeline.report import write_report
from megatron_af.pipeline.stages import ExitGateFailed, hold_against_gate, measure_stage, train_stage
from megatron_af.runs.paths import CheckpointError
from megatron_af.runs.presence import missing_at_the_head
from megatron_af.tracking.runs import (
    TrackedRun,
    adopt_outer_run,
    curriculum_spool,
    send_the_rest,
    start_curriculum_run,
)
from megatron_af.tracking.spool import Spool

type Say = Callable[[str], None]
"""Takes one line, which begins with its step: ``[align] …``, of a job on several nodes ``[align 1] …``."""
MLFLOW_STATUS = {"SUCCEEDED": "FINISHED", "CANCELLED": "KILLED", "CANCELED": "KILLED"}
"""Our and Kubeflow's word for how a pipeline ended -> MLflow's; anything else is a failure."""
PROGRESS_SECONDS = 2.0
"""Between two writes of a running step's progress."""


class Place(Protocol):
    """Where the processes of steps run."""

    def job(self, spec: StepSpec, name: str, argv: tuple[str, ...]) -> Job:
        """A command of a step with what it gets here."""

    def check(self, steps: Sequence[StepSpec]) -> None:
        """At the head of a pipeline: would this place take what comes later? Raises `StepFailed`."""

    def run(self, job: Job, say: Say) -> int:
        """Run a job to its end and return how often it was restarted. Raises `StepFailed` and `Cancelled`."""


class ThisMachine:
    """The nodes and processes of ``config.launch``, as processes here; a job that fails is not restarted."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def job(self, spec: StepSpec, name: str, argv: tuple[str, ...]) -> Job:
        launch = self._config.launch
        nodes, processes = (launch.nodes, launch.processes_per_node) if spec.distributed else (1, 1)
        return Job(name=name, argv=argv, distributed=spec.distributed, nodes=nodes, processes=processes, max_restarts=0)

    def check(self, steps: Sequence[StepSpec]) -> None:
        """This machine takes what it is given."""

    def run(self, job: Job, say: Say) -> int:
        return launch_local(job, say)


def show(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def run_step(name: str, config: Config, launch: Launch, place: Place, say: Say = show) -> dict[str, float]:
    """Run a step to its end and return what is worth showing beside it: seconds, restarts, the last loss.

    Raises `StepFailed` with the last error's text (`ExitGateFailed` where only that is wrong), and `Cancelled`; either
    way nothing is left running.
    """
    steps = pipeline_steps(config, launch.pipeline)
    spec = next(spec for spec in steps if spec.name == name)
    folder = RunFolder(config)
    with cancellable(), _log(folder.log(name), say) as note:
        before = folder.step(name)
        if before and before.state == DONE and before.reads == spec.reads and _may_skip(spec, before, folder, launch):
            note(f"[{name}] done before, {time.strftime('%F %T', time.localtime(before.ended))}; nothing to do")
            return {"seconds": 0.0, "restarts": 0.0}
        if before and before.give_up and before.launch == launch:
            advice = "not tried again: mend the cause, then `af-pipelines resume`"
            raise StepFailed(f"{before.error}\n({advice})", give_up=True)
        following = _Following(folder, StepRecord(step=name, launch=launch, reads=spec.reads), before, note)
        try:
            work = _Work(spec, place, str(folder.write_config(config)), following)
            if launch.pipeline in TRAINING:
                adopt_outer_run(config)
            if not spec.after:
                _check_the_rest(config, launch, steps, place)
            if spec.kind == "command":
                work.run(*spec.argv(work.config_file))
            else:
                _run_stage(spec, config, work, note)
        except StepFailed as failure:
            following.end(FAILED, error=str(failure), give_up=failure.give_up)
            raise
        except Cancelled as stop:
            following.end(CANCELLED, error=str(stop))
            raise
        except BaseException as error:
            following.end(FAILED, error=f"{type(error).__name__}: {error}")
            raise
        return following.end(DONE)


def finish(config: Config, launch: Launch, state: str, run: TrackedRun | None = None) -> str:
    """After the last step, whatever happened: end the curriculum's MLflow run, write and return the report.

    Args:
        run: the curriculum's, where it was opened at the beginning.
    """
    folder = RunFolder(config)
    for record in folder.steps():
        if record.state == RUNNING and record.launch.run == launch.run:
            gone = "its process ended without a word: out of memory, evicted, or a lost node"
            folder.write_step(dataclasses.replace(record, state=FAILED, ended=time.time(), error=gone))
    if launch.pipeline in TRAINING and config.tracking.enabled:
        run = run or start_curriculum_run(config)
        run.end(MLFLOW_STATUS.get(state, "FAILED"), _ending(folder, launch, state))
        run.wait(config.tracking.linger_seconds)
        send_the_rest(config)
    return write_report(folder, launch, pipeline_steps(config, launch.pipeline), state)


TRAINING = ("curriculum", "stages")
"""Pipelines that are the curriculum's run in MLflow; a promotion says nothing about the training."""


def _ending(folder: RunFolder, launch: Launch, state: str) -> str:
    failed = [record for record in folder.steps() if record.launch == launch and record.state == FAILED]
    return failed[0].error.splitlines()[0] if failed else f"pipeline {state.lower()}"


class _Work:
    """The commands of one step, one after another."""

    def __init__(self, spec: StepSpec, place: Place, config_file: str, following: "_Following") -> None:
        self._spec, self._place, self.config_file, self._following = spec, place, config_file, following
        self._started = 0

    def run(self, *argv: str) -> None:
        self._started += 1
        name = self._spec.name if self._started == 1 else f"{self._spec.name}-{self._started}"
        self._following.begin()
        self._following.restarts += self._place.run(self._place.job(self._spec, name, argv), self._following)

    def run_tool(self, tool: str, *more: str) -> None:
        """`stages.Launch`."""
        self.run(str(Path("tools") / tool), "--config", self.config_file, f"stage={self._spec.stage}", *more)


def _run_stage(spec: StepSpec, config: Config, work: _Work, say: Say) -> None:
    """Train a stage, or measure it, and hold it against its exit gate when its numbers are there."""
    settings = config.curriculum[spec.stage]
    try:
        if spec.kind == "train":
            train_stage(config, spec.stage, work.run_tool, lambda line: say(f"[{spec.name}] {line}"))
        if spec.kind == "measure" or not settings.is_measured:
            parent = Spool(curriculum_spool(config)) if config.tracking.enabled else None
            metrics = measure_stage(config, spec.stage, work.run_tool, parent)
            hold_against_gate(config, spec.stage, metrics)
    except ExitGateFailed as error:
        raise ExitGateFailed(f"{spec.name}: {error}", give_up=True) from error
    except (CheckpointError, ConfigError, FileNotFoundError, KeyError) as error:
        message = str(error.args[0] if isinstance(error, KeyError) else error)
        raise StepFailed(f"{spec.name}: {message}", give_up=True) from error


def _check_the_rest(config: Config, launch: Launch, steps: Sequence[StepSpec], place: Place) -> None:
    """Before the first step: what a later one would fail for only after hours."""
    if launch.pipeline in TRAINING and (missing := list(missing_at_the_head(config))):
        raise StepFailed("\n- ".join(["what no step makes is not there:", *missing]), give_up=True)
    place.check(steps)


def _may_skip(spec: StepSpec, before: StepRecord, folder: RunFolder, launch: Launch) -> bool:
    if spec.kind != "command" or (launch.pipeline == "promote" and before.launch.run != launch.run):
        return False
    waited = [record for name in spec.after if (record := folder.step(name))]
    return all(record.ended <= before.started for record in waited)


class _Following:
    """Passes a step's lines on and keeps its record up to date with what they say."""

    def __init__(self, folder: RunFolder, record: StepRecord, before: StepRecord | None, say: Say) -> None:
        self._folder, self._record, self._say = folder, record, say
        self._done_before = before is not None and before.state == DONE
        self._begun = False
        self._written = 0.0
        self._lock = threading.Lock()
        self._metrics: dict[str, float] = {}
        self.restarts = 0

    def begin(self) -> None:
        """The step starts a process. One that finds all its work done leaves the record of who did it."""
        if not self._begun:
            self._begun = True
            self._folder.write_step(self._record)

    def __call__(self, line: str) -> None:
        with self._lock:
            self._say(line)
            progress = read_progress(line)
            if progress is None:
                return
            self._metrics = {"step": float(progress.step)}
            found = {"loss": progress.loss, "tokens_per_second": progress.tokens_per_second}
            self._metrics |= {name: value for name, value in found.items() if value is not None}
            self._record = dataclasses.replace(self._record, progress=str(progress))
            if time.monotonic() - self._written > PROGRESS_SECONDS:
                self._written = time.monotonic()
                self._folder.write_step(self._record)

    def end(self, state: str, *, error: str = "", give_up: bool = False) -> dict[str, float]:
        with self._lock:
            self._record = record = dataclasses.replace(
                self._record, state=state, ended=time.time(), error=error, give_up=give_up, restarts=self.restarts
            )
            if self._begun or error or not self._done_before:
                self._folder.write_step(record)
            if error:
                self._say(f"[{record.step}] {state}: {error}")
            elif self._begun:
                restarts = f" with {record.restarts} restarts" if record.restarts else ""
                self._say(f"[{record.step}] done in {record.seconds:.0f} s{restarts}")
            return {"seconds": record.seconds, "restarts": float(record.restarts), **self._metrics}


@contextlib.contextmanager
def _log(path: Path, say: Say) -> Iterator[Say]:
    """Say lines, and append them to the step's log, which outlives the pod that wrote them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", buffering=1) as file:

        def note(text: str) -> None:
            # Every line of a message carries its step, by which `logs` finds it.
            prefix = f"{text.split(']', 1)[0]}] " if text.startswith("[") and "]" in text else ""
            text = text.replace("\n", f"\n{prefix}")
            file.write(text + "\n")  # first: whoever reads the other may have gone
            say(text)

        yield note
