"""Development rows, looked at while a stage trains: their loss, and how many answers the model is sure of.

    Watch(config)       # curriculum.STAGE.watch; adds ``watched/loss`` and ``watched/sure`` every so many steps

They are the same rows each time, as training would show them, without dropout and without a gradient. An answer is
sure where each of its tokens is likelier than all others together: what greedy decoding then says is right.

``watch.best`` has the best checkpoint kept, and ``watch.patience`` ends a stage that gets no better.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from megatron_af.config import Config
from megatron_af.data.stream import Stream
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.callbacks.base import Callback, Record

if TYPE_CHECKING:
    from megatron_af.data.batch import StepBatch
    from megatron_af.train.trainer import Trainer


class Watch(Callback):
    """Its batches are made before the first step and kept."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._batches: list[StepBatch[Any]] = []
        self._best: float | None = None
        self._best_step = self._without_better = 0
        self._measure: list[str | int] | None = None

    def on_start(self, trainer: "Trainer") -> None:
        watch = trainer.stage.watch
        stage = replace(trainer.stage, blend={watch.dataset: 1.0}, length_buckets=())
        stream = Stream(
            self._config,
            stage,
            trainer.objective.texts(self._config, stage, self._tokenizer),
            dp_rank=trainer.groups.data_rank,
            dp_size=trainer.groups.data_size,
            mp_rank=trainer.groups.model_rank,
            mp_size=trainer.groups.model_size,
            device=trainer.device,
        )
        try:
            steps = -(-watch.samples // stage.global_batch_samples)
            self._batches = [stream.batch(step) for step in range(steps)]
        finally:
            stream.close()
        self._go_on(trainer)

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        if trainer.step % trainer.stage.watch.every_steps and trainer.step != trainer.stage.steps:
            return
        found = [trainer.learner.measure(batch) for batch in self._batches]
        for name in found[0]:
            record[f"watched/{name}"] = sum(numbers[name] for numbers in found) / len(found)
        if (by := trainer.stage.watch.best) and not trainer.suspicious:  # no such weights are kept (``SaveEvery``)
            self._compare(trainer, record[f"watched/{by}"], lower=by == "loss")

    def _go_on(self, trainer: "Trainer") -> None:
        """From what is remembered, unless it is of other rows, or of another number: a share is above no loss."""
        if self._measure not in (None, trainer.stage.watch.measure):
            self._best, self._without_better = None, 0
        self._measure = trainer.stage.watch.measure
        self._end_if_enough(trainer)

    def _compare(self, trainer: "Trainer", value: float, *, lower: bool) -> None:
        """Every rank has the same numbers, so all of them come to the same end."""
        if self._best is None or (value < self._best if lower else value > self._best):
            self._best, self._best_step, self._without_better = value, trainer.step, 0
            trainer.best_step = trainer.step
        else:
            self._without_better += 1
            self._end_if_enough(trainer)

    def _end_if_enough(self, trainer: "Trainer") -> None:
        watch = trainer.stage.watch
        if 0 < watch.patience <= self._without_better:
            trainer.enough = True
            if trainer.rank == 0:
                print(
                    f"step {trainer.step}: {self._without_better} looks at {watch.dataset} without a better "
                    f"{watch.best} than {self._best:.4g} at step {self._best_step}: the stage ends here "
                    "(watch.patience)",
                    flush=True,
                )

    def state_dict(self) -> dict[str, Any]:
        if self._best is None:
            return {}
        told = {"best": self._best, "best_step": self._best_step, "without_better": self._without_better}
        return told | {"measure": self._measure}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._best_step = state["best"], state["best_step"]
        self._without_better = state["without_better"]
        self._measure = state.get("measure")
