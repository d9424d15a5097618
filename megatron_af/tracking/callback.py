"""Follows a stage in MLflow. Given to every rank, it acts on rank 0 alone: one writer per job.

    with Trainer(config, [LogLine(10), MLflowTracking(config)]) as trainer: ...

A step costs one write to a local file; everything else happens in another process (``sender.py``).
"""

from pathlib import Path
from typing import TYPE_CHECKING

from megatron_af.config import Config
from megatron_af.runs.paths import read_resume
from megatron_af.tracking.runs import TrackedRun, start_stage_run
from megatron_af.train.callbacks import Callback, Record

if TYPE_CHECKING:
    from megatron_af.train.trainer import Trainer

STATUS = {"done": "FINISHED", "stopped": "KILLED"}
"""MLflow's word for why a stage ended; any other reason is a failure."""


class MLflowTracking(Callback):
    """One MLflow run per stage and set of inputs, below the curriculum's run; a resumed stage goes on in its run."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._run: TrackedRun | None = None
        self._last_step = -1

    def on_start(self, trainer: "Trainer") -> None:
        if trainer.rank == 0:
            gpus = f"{trainer.world_size} x {trainer.device.name}" if trainer.device.is_gpu else ""
            self._run = start_stage_run(self._config, gpus=gpus, world_size=trainer.world_size)
            self._last_step = self._run.spool.last_step()

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        step = int(record["step"])
        # Steps between the last checkpoint and the end of the previous start are trained again, to the same numbers.
        if self._run is not None and step > self._last_step:
            self._run.spool.metrics(step, {name: value for name, value in record.items() if name != "step"})

    def on_checkpoint(self, trainer: "Trainer", path: Path) -> None:
        if self._run is not None:
            self._run.spool.append("checkpoint", step=read_resume(path)["step"], path=str(path.absolute()))

    def on_end(self, trainer: "Trainer", reason: str) -> None:
        if self._run is not None:
            self._run.end(STATUS.get(reason, "FAILED"), reason)
            self._run = None
