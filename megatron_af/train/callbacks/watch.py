"""Development rows, looked at while a stage trains: their loss, and how many answers the model is sure of.

    Watch(config)       # curriculum.STAGE.watch; adds ``watched/loss`` and ``watched/sure`` every so many steps

They are the same rows each time, as training would show them, without dropout and without a gradient. An answer is
sure where each of its tokens is likelier than all others together: what greedy decoding then says is right.
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

    def on_start(self, trainer: "Trainer") -> None:
        watch = trainer.stage.watch
        stage = replace(trainer.stage, blend={watch.dataset: 1.0})
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

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        if trainer.step % trainer.stage.watch.every_steps and trainer.step != trainer.stage.steps:
            return
        found = [trainer.learner.measure(batch) for batch in self._batches]
        for name in found[0]:
            record[f"watched/{name}"] = sum(numbers[name] for numbers in found) / len(found)
