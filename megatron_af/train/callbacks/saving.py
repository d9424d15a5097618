"""Checkpoints on the way, and memory given back."""

from typing import TYPE_CHECKING

from megatron_af.train.callbacks.base import Callback, Record

if TYPE_CHECKING:
    from megatron_af.train.trainer import Trainer

RETURN_MEMORY_STEPS = 20


class SaveEvery(Callback):
    """A checkpoint every ``every`` steps (0: none but the last), and of each step that is the best so far; published as
    soon as it is complete. None while the loss has left its course."""

    def __init__(self, every: int) -> None:
        self._every = every

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        trainer.checkpoints.poll()
        if trainer.suspicious:
            return
        if trainer.best_step == trainer.step or (self._every and trainer.step % self._every == 0):
            trainer.save()


class ReturnMemory(Callback):
    """What the allocator no longer needs goes back to the system now and then."""

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        if trainer.step % RETURN_MEMORY_STEPS == 0:
            trainer.device.return_freed_memory()
