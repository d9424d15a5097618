"""What the meter measured of some steps."""

from types import SimpleNamespace
from typing import Any

from megatron_af.train.callbacks import Record
from megatron_af.train.callbacks.meter import Meter

BATCH: Any = SimpleNamespace(text=SimpleNamespace(num_tokens=5), audio=SimpleNamespace(seconds=2.0))


def stand_in(step: int) -> Any:
    """A trainer of ten steps on two data-parallel ranks."""
    return SimpleNamespace(
        step=step,
        stage=SimpleNamespace(steps=10),
        groups=SimpleNamespace(data_size=2),
        learner=SimpleNamespace(flops=lambda batch: 6.0),
        device=SimpleNamespace(peak_memory_bytes=lambda: 7),
    )


def measured(steps: int) -> Record:
    """The record of the last of some steps."""
    record: Record = {}
    watch = Meter()
    for step in range(1, steps + 1):
        record = {}
        watch.on_batch(stand_in(step), BATCH, waited=0.5)
        watch.on_step(stand_in(step), record)
    return record
