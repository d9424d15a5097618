"""The log: what trains, then one line every few steps."""

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.panel import Panel

from dali_pipes.mel import slower_mel
from megatron_af.progress import duration
from megatron_af.train.callbacks.base import Callback, Record
from megatron_af.train.trainable import table

if TYPE_CHECKING:
    from megatron_af.train.trainer import Trainer


class LogLine(Callback):
    """The table of what trains, what makes it slower than it could be, and a line every ``every`` steps, on rank 0."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._console = Console(highlight=False, soft_wrap=True)

    def on_start(self, trainer: "Trainer") -> None:
        if trainer.rank == 0:
            self._console.print(table(trainer.counts, trainer.config.stage))
            for slower in filter(None, [trainer.device.slower_layers(trainer.config.layers), slower_mel()]):
                self._console.print(Panel(slower, title="slower than it could be"))

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        step, steps = int(record["step"]), trainer.stage.steps
        if trainer.rank == 0 and (step % self._every == 0 or step == steps):
            self._console.print(format_line(record, steps))


def format_line(record: Record, steps: int) -> str:
    """``step 120/5000 2.4% | loss … | grad … | lr … | tok/s … | audio-s/s … | mfu … | data-wait … | mem … | eta …``"""
    step, skipped = int(record["step"]), int(record.get("skipped", 0))

    too_long = [name.removeprefix("too_long/") for name in record if name.startswith("too_long/") and record[name]]

    def number(key: str, form: str) -> str:
        value = record.get(key, math.nan)
        return "–" if math.isnan(value) else format(value, form)

    return " | ".join(
        [
            f"step {step}/{steps} {100 * step / steps:.1f}%",
            *([f"skipped {skipped}"] if skipped else []),
            *(f"too long {name} {record[f'too_long/{name}']:.0f}" for name in too_long),
            f"loss {number('loss', '.4f')}",
            *([f"chance {number('chance_loss', '.4f')}"] if "chance_loss" in record else []),
            *([f"watched {number('watched/loss', '.4f')}"] if "watched/loss" in record else []),
            *([f"sure {number('watched/sure', '.1%')}"] if "watched/sure" in record else []),
            f"grad {number('grad_norm', '.3f')}",
            f"lr {number('learning_rate', '.2e')}",
            f"tok/s {number('tokens_per_second', ',.0f')}",
            f"audio-s/s {number('audio_seconds_per_second', ',.1f')}",
            f"mfu {number('mfu', '.1%')}",
            f"data-wait {number('data_wait', '.1%')}",
            f"mem {record.get('memory_bytes', 0) / 2**30:.2f} GiB",
            f"eta {duration(record.get('eta_seconds', math.nan))}",
        ]
    )
