"""What attaches to the training loop: the log line, checkpoints on the way, signals.

A callback implements any of the hooks below. The loop knows nothing of what they do.
"""

import math
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from megatron_af.parallel.device import current_device

if TYPE_CHECKING:
    from megatron_af.train.trainer import Trainer

Record = dict[str, float]
"""Numbers of one step: ``step``, ``loss``, ``loss/<data set>``, ``sample_loss/<data set>``, ``tokens``,
``tokens/<data set>``, ``grad_norm``, ``learning_rate``, ``tokens_per_second``, ``audio_seconds_per_second``, ``mfu``,
``data_wait``, ``memory_bytes``, ``eta_seconds``, ``gate_attn/<layer>``, ``gate_ffn/<layer>``; once there are any,
``skipped`` (steps without an update so far)."""


class Callback:
    """Base of all callbacks; every hook does nothing."""

    def on_start(self, trainer: "Trainer") -> None: ...

    def on_step(self, trainer: "Trainer", record: Record) -> None: ...

    def on_checkpoint(self, trainer: "Trainer", path: Path) -> None:
        """A checkpoint can be read at ``path``; with asynchronous saving, that is some steps after it was taken."""

    def on_end(self, trainer: "Trainer", reason: str) -> None:
        """``reason``: ``done``, ``stopped`` (by a signal) or ``failed``."""


class LogLine(Callback):
    """One line every ``every`` steps, on rank 0."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._console = Console(highlight=False, soft_wrap=True)

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        step, steps = int(record["step"]), trainer.stage.steps
        if trainer.rank == 0 and (step % self._every == 0 or step == steps):
            self._console.print(format_line(record, steps))


def format_line(record: Record, steps: int) -> str:
    """``step 120/5000 2.4% | loss … | grad … | lr … | tok/s … | audio-s/s … | mfu … | data-wait … | mem … | eta …``"""
    step, skipped = int(record["step"]), int(record.get("skipped", 0))

    def number(key: str, form: str) -> str:
        value = record.get(key, math.nan)
        return "–" if math.isnan(value) else format(value, form)

    return " | ".join(
        [
            f"step {step}/{steps} {100 * step / steps:.1f}%",
            *([f"skipped {skipped}"] if skipped else []),
            f"loss {number('loss', '.4f')}",
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


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``; a dash while unknown."""
    if math.isnan(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class StopOnSignal(Callback):
    """SIGTERM, SIGINT and SIGUSR1 (preemption) end the run after the step under way, with a checkpoint.

    No matter how often they come: a terminal and a launcher may both pass the same one on.
    """

    def on_start(self, trainer: "Trainer") -> None:
        def stop(signum: int, frame: Any) -> None:
            trainer.request_stop()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, stop)


class Meter:
    """Rates and remaining time, warm-up steps excluded."""

    WARMUP_STEPS = 3
    WINDOW = 50

    def __init__(self) -> None:
        self._steps: list[tuple[float, float, float, float, float]] = []
        self._seen = 0
        self._last = time.perf_counter()

    def measure(self, *, tokens: float, audio_seconds: float, wait_seconds: float, flops: float, left: int) -> Record:
        now = time.perf_counter()
        step_seconds, self._last = now - self._last, now
        self._seen += 1
        if self._seen <= self.WARMUP_STEPS:
            return {"memory_bytes": float(current_device().peak_memory_bytes())}
        self._steps = [*self._steps, (step_seconds, tokens, audio_seconds, wait_seconds, flops)][-self.WINDOW :]
        seconds, tokens, audio_seconds, wait_seconds, flops = (sum(c) for c in zip(*self._steps, strict=True))
        return {
            "step_seconds": step_seconds,
            "tokens_per_second": tokens / seconds,
            "audio_seconds_per_second": audio_seconds / seconds,
            "flops_per_second": flops / seconds,
            "data_wait": wait_seconds / seconds,
            "memory_bytes": float(current_device().peak_memory_bytes()),
            "eta_seconds": left * seconds / len(self._steps),
        }

    def pause(self) -> None:
        """Leave out the time since the last step (a checkpoint was written)."""
        self._last = time.perf_counter()
