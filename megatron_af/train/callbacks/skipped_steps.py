"""Steps whose gradient is not finite change no weight; too many in a row end the run. Where their samples stand."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from rich.console import Console
from rich.markup import escape

from megatron_af.files import append
from megatron_af.foreign import read_text
from megatron_af.train.callbacks.base import Callback, Record
from megatron_af.train.optimizer import NonFiniteGradient

if TYPE_CHECKING:
    from megatron_af.data.batch import StepBatch
    from megatron_af.train.trainer import Trainer

MAX_SKIPPED_IN_A_ROW = 5
"""A few bad samples spoil a step or two; more in a row come from weights or settings that no next step mends."""
REPORT = "skipped.jsonl"
"""In a stage's folder: one line for each step that changed no weight, with the ids of the samples that each rank saw in
it, its loss, and why."""


class SkippedSteps(Callback):
    """Tells of such steps and counts them. A gradient is a function of the step: a restart would only meet it again.

    Raises:
        NonFiniteGradient: on all ranks, after ``MAX_SKIPPED_IN_A_ROW`` such steps.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._samples: tuple[str, ...] = ()

    def on_batch(self, trainer: "Trainer", batch: "StepBatch[Any]", waited: float) -> None:
        self._samples = batch.sample_ids

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        skipped = not math.isfinite(record["grad_norm"])  # on all ranks alike
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        if trainer.skipped:
            record["skipped"] = float(trainer.skipped)
        if not skipped:
            return
        report = write_down(trainer, "not finite", {trainer.step: (record["loss"], self._samples)})
        what = (
            f"stage {trainer.config.stage}, step {trainer.step}: the gradient is not finite; no weight was changed. "
            f"Loss {record['loss']}; samples of rank {trainer.rank}: {', '.join(self._samples[:8])}; all: {report}"
        )
        if self._in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise NonFiniteGradient(
                f"{what}. It is step {self._in_a_row} of its kind in a row: mend these samples, or begin anew "
                "with a lower optimizer.learning_rate and another name="
            )
        if trainer.rank == 0:
            Console(soft_wrap=True).print(f"[bold yellow]skipped[/] {escape(what)}")

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._in_a_row = state["in_a_row"]


def write_down(trainer: "Trainer", why: str, steps: Mapping[int, tuple[float, Sequence[str]]]) -> Path:
    """Append steps to the report; a collective: all ranks call it alike.

    Args:
        steps: number -> its loss, and the ids of the samples that this rank saw.
    """
    everyones: list[Any] = [steps]
    if trainer.world_size > 1:
        everyones = [None] * trainer.world_size
        dist.all_gather_object(everyones, steps)
    report = trainer.folder / REPORT
    if trainer.rank == 0:
        told = [
            {"step": step, "why": why, "loss": str(loss), "samples": [list(of_rank[step][1]) for of_rank in everyones]}
            for step, (loss, _) in steps.items()
        ]
        # A step that is trained again after a restart is skipped again, and told once.
        present = set(read_text(report).splitlines()) if report.is_file() else set()
        lines = [line for line in map(json.dumps, told) if line not in present]
        append(report, "".join(line + "\n" for line in lines))
    return report
