"""What a pipeline leaves on disk, beside the run's checkpoints: who ran what, how it ended, and the logs.

    folder = RunFolder(config)                      # output/name/pipeline
    folder.write_step(StepRecord(step="align", launch=…, reads=…))
    for record in folder.steps(): …

The folder lies on the shared volume of a cluster or on this machine's disk; every file is replaced atomically, and each
step writes only its own, so steps may run side by side and be killed at any moment.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from megatron_af.config import Config
from megatron_af.config.as_json import from_json
from megatron_af.config.loading import to_yaml
from megatron_af.files import write
from megatron_af.foreign import read_json
from megatron_af.pipeline.graph import StepSpec, pipeline_steps

RUNNING, DONE, FAILED, CANCELLED = "running", "done", "failed", "cancelled"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """Whose behalf a step runs on: one start of a pipeline."""

    run: str
    """Name of the run, the same for all of its attempts."""
    attempt: int = 1
    """Counts `resume`."""
    pipeline: str = "curriculum"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRecord:
    """The last time a step ran."""

    step: str
    launch: Launch
    reads: str
    """Digest of what it was made from (`StepSpec.reads`)."""
    state: str = RUNNING
    started: float = dataclasses.field(default_factory=time.time)
    """Seconds since the epoch."""
    ended: float = 0.0
    restarts: int = 0
    progress: str = ""
    error: str = ""
    give_up: bool = False
    """The failure would repeat, so this attempt does not try the step again."""

    @property
    def seconds(self) -> float:
        return max(0.0, (self.ended or time.time()) - self.started)  # a clock may be set back meanwhile


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The last start of a pipeline, as `status`, `logs`, `cancel` and `resume` need it."""

    launch: Launch
    config: str
    """The resolved configuration, as JSON."""
    steps: tuple[str, ...] = ()
    """Those that were asked for; empty: all of the pipeline."""
    pid: int = 0
    """Process that drives a run on ``host``."""
    host: str = dataclasses.field(default_factory=socket.gethostname)
    """The folder may lie on a volume that other machines see, where another process has that number."""
    kubeflow_run: str = ""
    """Id of a run in Kubeflow Pipelines."""
    cluster: str = ""
    """The cluster file's values, as JSON; empty: this machine."""
    started: float = dataclasses.field(default_factory=time.time)

    def read_config(self) -> Config:
        return from_json(Config, self.config)

    def graph(self) -> list[StepSpec]:
        """Its steps, in their order."""
        specs = pipeline_steps(self.read_config(), self.launch.pipeline)
        return [spec for spec in specs if not self.steps or spec.name in self.steps]

    @property
    def is_here(self) -> bool:
        """Whether it was started on this machine."""
        return self.host == socket.gethostname()

    def driver(self) -> psutil.Process | None:
        """The other process that drives a run on this machine, if it lives; a new one may have its number by now."""
        if not self.is_here:
            return None
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid) if self.pid not in (0, os.getpid()) else None
            if process and process.create_time() <= self.started and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


class RunFolder:
    """``output/name/pipeline`` of one configuration."""

    def __init__(self, config: Config) -> None:
        self.path = Path(config.output) / config.name / "pipeline"

    def log(self, step: str) -> Path:
        """The step's whole output over all attempts."""
        return self.path / "logs" / f"{step}.log"

    def write_config(self, config: Config) -> Path:
        """The file that the tools read. Every step writes the same text, so it does not matter who was last."""
        file = self.path / "config.yaml"
        write(file, to_yaml(config))
        return file

    def write_step(self, record: StepRecord) -> None:
        write(self.path / "steps" / f"{record.step}.json", _to_json(record))

    def step(self, name: str) -> StepRecord | None:
        """The step's record, or None when it never ran."""
        values = _read_json(self.path / "steps" / f"{name}.json")
        return StepRecord(**values | {"launch": Launch(**values["launch"])}) if values else None

    def steps(self) -> Iterator[StepRecord]:
        for path in sorted((self.path / "steps").glob("*.json")):
            record = self.step(path.stem)
            if record:
                yield record

    def write_run(self, record: RunRecord) -> None:
        write(self.path / "run.json", _to_json(record))

    def run(self) -> RunRecord | None:
        values = _read_json(self.path / "run.json")
        if values is None:
            return None
        return RunRecord(**values | {"launch": Launch(**values["launch"]), "steps": tuple(values["steps"])})


def new_run() -> str:
    """A name for a run: when it began, and four letters against two in one second."""
    return time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)


def _to_json(record: StepRecord | RunRecord) -> str:
    return json.dumps(dataclasses.asdict(record), indent=1) + "\n"


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = read_json(path)
    except FileNotFoundError:
        return None
    return values
