"""A loss that leaves its course: back to the checkpoint before it, without the samples seen since.

    Spikes(stage.spikes)        # raises GoBack on all ranks; ``train_stage`` starts again

What a spike does to weights and moments outlasts it, and what set it off is often a stretch of data in front of it. So
the run goes back to its newest checkpoint, which is never of a spike (``SaveEvery`` waits), and passes over all steps
from there to the spike's end: they count as skipped, and every other step keeps the samples and the learning rate that
it has anyway (Chowdhery et al. 2022, PaLM, section 5.1: 200 to 500 batches were left out so, by hand). A run that dies
before its next checkpoint meets the spike again and goes back again: losses and bounds are the same, so is the end.
"""

import math
import statistics
from collections import deque
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from megatron_af.config import SpikesConfig
from megatron_af.train.callbacks.base import Callback, Record
from megatron_af.train.callbacks.skipped_steps import write_down

if TYPE_CHECKING:
    from pathlib import Path

    from megatron_af.data.batch import StepBatch
    from megatron_af.train.trainer import Trainer

WINDOW, LEAST = 128, 32
"""Steps whose losses say what is usual; with fewer than the latter, nothing is a spike."""
NORMAL = 1.4826
"""The standard deviation of a normal distribution by its median distance from the median."""
FLAT = 1e-3
"""Part of the median that a deviation is at least: losses that hardly move make no spikes."""

type Stretches = tuple[tuple[int, int], ...]
"""First and last step (from 1) of each."""


class GoBack(Exception):
    """Start again from the newest checkpoint; on all ranks alike."""

    def __init__(self, left_out: Stretches) -> None:
        super().__init__(f"back to the checkpoint before step {left_out[-1][0]}")
        self.left_out = left_out


class LossSpike(RuntimeError):
    """The loss left its course once more than a stage may go back."""


class Spikes(Callback):
    """Every rank has the same losses, so all of them come to the same end.

    Raises:
        GoBack: after ``steps`` losses in a row that are too high.
        LossSpike: the same, when the stage has gone back ``times`` times.
    """

    def __init__(self, spikes: SpikesConfig) -> None:
        self._spikes = spikes
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._above = 0
        self._samples: tuple[str, ...] = ()
        self._seen: dict[int, tuple[float, tuple[str, ...]]] = {}
        """Step since the newest checkpoint -> its loss, and this rank's samples."""

    def on_batch(self, trainer: "Trainer", batch: "StepBatch[Any]", waited: float) -> None:
        self._samples = batch.sample_ids

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        loss, bound = record["loss"], self.bound()
        self._seen[trainer.step] = (loss, self._samples)
        if not math.isfinite(loss):  # a step that changed nothing
            return
        trainer.suspicious = loss > bound
        if not trainer.suspicious:
            self._above = 0
            self._losses.append(loss)
            return
        self._above += 1
        if self._above >= self._spikes.steps:
            self._end_try(trainer, loss, bound)

    def bound(self) -> float:
        """The loss above which the next one is too high; infinite while too few are known."""
        if len(self._losses) < LEAST:
            return math.inf
        median = statistics.median(self._losses)
        deviation = NORMAL * statistics.median(abs(loss - median) for loss in self._losses)
        return median + self._spikes.deviations * max(deviation, FLAT * abs(median))

    def _end_try(self, trainer: "Trainer", loss: float, bound: float) -> None:
        first, key = trainer.saved_step + 1, f"curriculum.{trainer.config.stage}"
        what = (
            f"stage {trainer.config.stage}, step {trainer.step}: a loss of {loss:.4g}, {self._above} in a row above "
            f"{bound:.4g} ({key}.spikes)"
        )
        left_out = {step: seen for step, seen in self._seen.items() if step >= first}
        report = write_down(trainer, "spike", left_out)
        if len(trainer.left_out) >= self._spikes.times:
            raise LossSpike(
                f"{what}; the stage has gone back {len(trainer.left_out)} times already. Look at the samples in "
                f"{report}, or begin anew with a lower {key}.optimizer.learning_rate and another name="
            )
        if trainer.rank == 0:
            told = f"{what}; back to step {first - 1}, and on without steps {first} to {trainer.step}: {report}"
            Console(soft_wrap=True).print(f"[bold yellow]spike[/] {escape(told)}")
        raise GoBack((*trainer.left_out, (first, trainer.step)))

    def on_checkpoint(self, trainer: "Trainer", path: "Path") -> None:
        saved = int(path.name.rpartition("_")[2])
        self._seen = {step: seen for step, seen in self._seen.items() if step > saved}

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses = deque(state["losses"], maxlen=WINDOW)
