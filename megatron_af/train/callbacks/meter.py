"""Rates, utilisation and remaining time of a run."""

import time
from typing import TYPE_CHECKING, Any

from megatron_af.train.callbacks.base import Callback, Record
from megatron_af.train.flops import peak_flops

if TYPE_CHECKING:
    from megatron_af.data.batch import StepBatch
    from megatron_af.train.trainer import Trainer


class Meter(Callback):
    """Adds rates over the last steps to the record; warm-up steps, and what other callbacks do, are left out."""

    WARMUP_STEPS = 3
    WINDOW = 50

    def __init__(self) -> None:
        self._steps: list[tuple[float, float, float, float, float]] = []
        self._seen = 0
        self._peak = 1.0
        self._began = 0.0
        self._work = (0.0, 0.0, 0.0, 0.0)

    def on_start(self, trainer: "Trainer") -> None:
        self._peak = peak_flops(trainer.config.precision, trainer.device) * trainer.world_size

    def on_batch(self, trainer: "Trainer", batch: "StepBatch[Any]", waited: float) -> None:
        self._began = time.perf_counter() - waited
        copies = trainer.groups.data_size
        self._work = (
            float(batch.text.num_tokens * copies),
            batch.audio.seconds * copies,
            waited,
            trainer.learner.flops(batch),
        )

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        record["memory_bytes"] = float(trainer.device.peak_memory_bytes())
        self._seen += 1
        if self._seen <= self.WARMUP_STEPS:
            return
        step_seconds = time.perf_counter() - self._began
        self._steps = [*self._steps, (step_seconds, *self._work)][-self.WINDOW :]
        seconds, tokens, audio_seconds, waited, flops = (sum(column) for column in zip(*self._steps, strict=True))
        record |= {
            "step_seconds": step_seconds,
            "tokens_per_second": tokens / seconds,
            "audio_seconds_per_second": audio_seconds / seconds,
            "flops_per_second": flops / seconds,
            "mfu": flops / seconds / self._peak,
            "data_wait": waited / seconds,
            "eta_seconds": (trainer.stage.steps - trainer.step) * seconds / len(self._steps),
        }
