"""What was planned beside what is measured: a line after ten steps, and two numbers for whoever follows the run."""

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from rich.console import Console

from megatron_af.plan.stage_plan import StagePlan
from megatron_af.train.callbacks import Callback, Record

if TYPE_CHECKING:
    from megatron_af.train.trainer import Trainer

GIB = 2**30


class BesidePlan(Callback):
    """Adds ``planned/memory_bytes`` and ``planned/step_seconds`` to the record of the tenth step that it sees, beside
    the measured ones: the memory of the rank that took the most, the time of the middle step after the warm-up."""

    STEPS = 10

    def __init__(self, plan: StagePlan) -> None:
        self._plan = plan
        self._seen = 0
        self._seconds: list[float] = []

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        self._seen += 1
        if "step_seconds" in record:
            self._seconds.append(record["step_seconds"])
        if self._seen != self.STEPS:
            return
        most = torch.tensor([record["memory_bytes"]], dtype=torch.float64, device=trainer.device.torch)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        measured = sorted(self._seconds)[len(self._seconds) // 2]
        record["planned/memory_bytes"] = self._plan.needed
        record["planned/step_seconds"] = self._plan.time.total
        record["measured/memory_bytes"], record["measured/step_seconds"] = most.item(), measured
        if trainer.rank == 0:
            Console(highlight=False, soft_wrap=True).print(
                f"planned {self._plan.needed / GIB:.2f} GiB and {self._plan.time.total:.2f} s a step, "
                f"measured {most.item() / GIB:.2f} GiB and {measured:.2f} s"
            )
