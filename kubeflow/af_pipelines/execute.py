"""What one step of a pipeline does when its turn comes, in a pod or in a process of this machine.

    metrics = run_step("align", Arguments(config=…, cluster=…, launch=Launch(run="demo-1")), launcher="auto")
    finish(Arguments(…), state="SUCCEEDED")        # the exit handler

A step that is done is not run again, unless what it is made from changed. For a stage that is decided by
`megatron_af.pipeline.curriculum`, from digests of its data and of the checkpoints it starts from; only where its
processes run is decided here. Commands are not skipped in a pipeline of their own: who asks for ``promote`` wants
it done now.
"""

import contextlib
import dataclasses
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from af_pipelines.cluster import ClusterConfig
from af_pipelines.job import Cancelled, Job, StepFailed
from af_pipelines.local import launch_local
from af_pipelines.logs import read_progress
from af_pipelines.records import CANCELLED, DONE, FAILED, RUNNING, Launch, RunFolder, StepRecord
from af_pipelines.report import write_report
from af_pipelines.steps import StepSpec, pipeline_steps
from megatron_af.config import Config, ConfigError
from megatron_af.config.loading import read_values

Say = Callable[[str], None]
MLFLOW_STATUS = {"SUCCEEDED": "FINISHED", "CANCELLED": "KILLED", "CANCELED": "KILLED"}
"""Kubeflow's and our word for how a pipeline ended -> MLflow's; anything else is a failure."""
PROGRESS_SECONDS = 2.0
"""Between two writes of a running step's progress."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """What a pipeline hands to each of its steps."""

    config: str
    """The run's configuration as JSON."""
    cluster: str
    """The cluster file's values as JSON."""
    launch: Launch

    def read_config(self) -> Config:
        return parse_json(Config, self.config)

    def read_cluster(self) -> ClusterConfig:
        return parse_json(ClusterConfig, self.cluster)


def run_step(name: str, arguments: Arguments, launcher: str = "auto") -> dict[str, float]:
    """Run a step to its end and return what is worth showing beside it: seconds, restarts, the last loss.

    ``launcher`` is ``local``, ``trainjob``, or ``auto``: training jobs where there is a cluster around this process.
    Raises `StepFailed` with the last error's text and `Cancelled`; either way nothing is left running.
    """
    config, cluster, launch = arguments.read_config(), arguments.read_cluster(), arguments.launch
    steps = pipeline_steps(config, launch.pipeline)
    spec = next(spec for spec in steps if spec.name == name)
    folder = RunFolder(config)
    with _log(folder.log(name)) as say:
        before = folder.step(name)
        if before and before.state == DONE and before.reads == spec.reads and _may_skip(spec, before, launch):
            say(f"[{name}] done before, {time.strftime('%F %T', time.localtime(before.ended))}; nothing to do")
            return {"seconds": 0.0, "restarts": 0.0}
        if before and before.give_up and before.launch == launch:
            advice = "not tried again: mend the cause, then `af-pipelines resume`"
            raise StepFailed(f"{before.error}\n({advice})", give_up=True)
        record = StepRecord(step=name, state=RUNNING, launch=launch, reads=spec.reads, started=time.time())
        following = _Following(folder, record, say)
        config_file = folder.write_config(config)
        folder.write_step(record)
        try:
            place = _Place(spec, config, cluster, launch, launcher, str(config_file), following)
            if not spec.after:
                place.check(steps)
            if spec.kind == "command":
                place.launch(spec.argv(str(config_file)))
            else:
                _run_stage(spec, config, place, following)
        except StepFailed as failure:
            following.end(FAILED, error=str(failure), give_up=failure.give_up)
            raise
        except Cancelled as stop:
            following.end(CANCELLED, error=f"cancelled: {stop}")
            raise
        except BaseException as error:
            following.end(FAILED, error=f"{type(error).__name__}: {error}")
            raise
        record = following.end(DONE, restarts=place.restarts)
        say(f"[{name}] done in {record.seconds:.0f} s" + (f" with {place.restarts} restarts" if place.restarts else ""))
        return {"seconds": record.seconds, "restarts": float(place.restarts), **following.metrics}


def finish(arguments: Arguments, state: str, launcher: str = "auto") -> str:
    """The exit handler: stop what still runs, mark the curriculum's MLflow run, write and return the report."""
    config, cluster, launch = arguments.read_config(), arguments.read_cluster(), arguments.launch
    folder = RunFolder(config)
    for record in folder.steps():
        if record.state == RUNNING and record.launch.run == launch.run:
            gone = "its process ended without a word: out of memory, evicted, or a lost node"
            folder.write_step(dataclasses.replace(record, state=FAILED, ended=time.time(), error=gone))
    if _on_cluster(launcher):
        from af_pipelines.trainjob import delete_run

        delete_run(cluster, launch.run)
    if launch.pipeline == "curriculum" and config.tracking.enabled:
        _mark_curriculum(config, state)
    return write_report(folder, launch, pipeline_steps(config, launch.pipeline), state)


def _mark_curriculum(config: Config, state: str) -> None:
    """End the curriculum's MLflow run, and send what its stages could not send while they lived."""
    from megatron_af.tracking.runs import start_curriculum_run

    run = start_curriculum_run(config)
    run.end(MLFLOW_STATUS.get(state, "FAILED"), f"pipeline {state.lower()}")
    run.wait(config.tracking.linger_seconds)


class _Place:
    """Where a step's processes run: nodes on this machine, or a training job on the cluster around it."""

    def __init__(
        self,
        spec: StepSpec,
        config: Config,
        cluster: ClusterConfig,
        launch: Launch,
        launcher: str,
        config_file: str,
        say: Say,
    ) -> None:
        self._spec, self._config, self._cluster, self._launch = spec, config, cluster, launch
        self._launcher, self._config_file, self._say = launcher, config_file, say
        self._started = 0
        self.restarts = 0

    def job(self, spec: StepSpec, name: str, argv: tuple[str, ...]) -> Job:
        placement = self._cluster.placement(spec.name, stage=spec.distributed)
        return Job(
            name=name,
            owner=f"{self._config.output}/{self._config.name}",
            step=spec.name,
            argv=argv,
            distributed=spec.distributed,
            nodes=placement.nodes if spec.distributed else 1,
            processes=placement.processes if spec.distributed else 1,
            env=self._cluster.env,
            max_restarts=self._cluster.max_restarts,
            deadline_seconds=self._cluster.deadline_hours * 3600,
        )

    def check(self, steps: Sequence[StepSpec]) -> None:
        """At the head of a pipeline: would the cluster take what comes later?"""
        if _on_cluster(self._launcher):
            from af_pipelines.trainjob import check

            jobs = [self.job(spec, spec.name, ("tools/pretrain_af.py",)) for spec in steps if spec.distributed]
            check(jobs, self._cluster, self._launch)

    def launch(self, argv: tuple[str, ...], see: Say = lambda line: None) -> None:
        """Run a command to its end. Only distributed ones leave the step's own process for a training job."""
        self._started += 1
        name = self._spec.name if self._started == 1 else f"{self._spec.name}-{self._started}"
        job = self.job(self._spec, name, argv)

        def say(line: str) -> None:
            self._say(line)
            see(line + "\n")

        if job.distributed and _on_cluster(self._launcher):
            from af_pipelines.trainjob import launch_trainjob

            self.restarts += launch_trainjob(job, self._cluster, self._launch, say)
        else:
            self.restarts += launch_local(job, say)

    def launch_tool(self, tool: str, stage: str, more: Sequence[str], log: Path, see: Say) -> int:
        """`curriculum.Launch`: the step's own log takes the place of ``log``."""
        self.launch((f"tools/{tool}", "--config", self._config_file, f"stage={stage}", *more), see)
        return 0


def _run_stage(spec: StepSpec, config: Config, place: _Place, say: Say) -> None:
    """Train a stage, or measure it, and hold it against its exit gate when its numbers are there."""
    from megatron_af.pipeline import curriculum
    from megatron_af.runs.paths import CheckpointError
    from megatron_af.tracking.runs import curriculum_spool
    from megatron_af.tracking.spool import Spool

    def watch(stage: str, line: str) -> None:
        if line.startswith(stage):  # the decision; what the processes print was said by their launcher
            say(f"[{spec.name}] {line.rstrip()}")

    settings = config.curriculum[spec.stage]
    try:
        if spec.kind == "train":
            curriculum.train_stage(config, spec.stage, place.launch_tool, watch)
        if spec.kind == "measure" or not settings.evaluation:
            parent = Spool(curriculum_spool(config)) if config.tracking.enabled else None
            metrics = curriculum.measure_stage(config, spec.stage, place.launch_tool, watch, parent)
            curriculum.hold_against_gate(config, spec.stage, metrics)
    except (
        curriculum.StageFailed, curriculum.ExitGateFailed, CheckpointError, ConfigError, FileNotFoundError, KeyError,
    ) as error:  # fmt: skip
        message = str(error.args[0] if isinstance(error, KeyError) else error)
        raise StepFailed(f"{spec.name}: {message}", give_up=True) from error


def _on_cluster(launcher: str) -> bool:
    return launcher == "trainjob" or (launcher == "auto" and "KUBERNETES_SERVICE_HOST" in os.environ)


def _may_skip(spec: StepSpec, before: StepRecord, launch: Launch) -> bool:
    return spec.kind == "command" and (launch.pipeline == "curriculum" or before.launch.run == launch.run)


class _Following:
    """Passes a job's lines on and keeps the step's record up to date with what they say."""

    def __init__(self, folder: RunFolder, record: StepRecord, say: Say) -> None:
        self._folder, self._record, self._say = folder, record, say
        self._written = 0.0
        self._lock = threading.Lock()
        self.metrics: dict[str, float] = {}

    def __call__(self, line: str) -> None:
        with self._lock:
            self._say(line)
            progress = read_progress(line)
            if progress is None:
                return
            self.metrics = {"step": float(progress.step)}
            self.metrics |= {"loss": progress.loss} if progress.loss is not None else {}
            self._record = dataclasses.replace(self._record, progress=str(progress))
            if time.monotonic() - self._written > PROGRESS_SECONDS:
                self._written = time.monotonic()
                self._folder.write_step(self._record)

    def end(self, state: str, *, error: str = "", give_up: bool = False, restarts: int = 0) -> StepRecord:
        with self._lock:
            self._record = dataclasses.replace(
                self._record, state=state, ended=time.time(), error=error, give_up=give_up, restarts=restarts
            )
            self._folder.write_step(self._record)
            if error:
                self._say(f"[{self._record.step}] {state}: {error}")
            return self._record


@contextlib.contextmanager
def _log(path: Path) -> Iterator[Say]:
    """Print lines, and append them to the step's log, which outlives the pod that wrote them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", buffering=1) as file:

        def say(text: str) -> None:
            # Every line of a message carries its step, by which `logs` finds it.
            prefix = f"{text.split(']', 1)[0]}] " if text.startswith("[") and "]" in text else ""
            text = text.replace("\n", f"\n{prefix}")
            file.write(text + "\n")  # first: whoever reads the other may have gone
            print(text, flush=True)

        yield say


def parse_json[Schema](schema: type[Schema], text: str, overrides: Sequence[str] = ()) -> Schema:
    """The inverse of `to_json`, with ``key=value`` changes."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        return read_values(schema, Path(file.name), overrides)


def to_json(settings: Any) -> str:
    """A configuration as one line of JSON: only what differs from the defaults, as a person would have written it."""
    return json.dumps(_differences(settings), separators=(",", ":"))


def _differences(settings: Any) -> Any:
    values = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value == default:
            continue
        if dataclasses.is_dataclass(value):
            values[field.name] = _differences(value)
        elif isinstance(value, dict):
            values[field.name] = {
                key: _differences(entry) if dataclasses.is_dataclass(entry) else entry for key, entry in value.items()
            }
        elif isinstance(value, tuple):
            values[field.name] = [_differences(item) if dataclasses.is_dataclass(item) else item for item in value]
        else:
            values[field.name] = value
    return values
