"""What a callback is: it attaches to the training loop, which knows nothing of what it does.

A callback implements any of the hooks below. What it must remember over a restart it returns from ``state_dict``: that
is stored in every checkpoint's manifest, so it must be JSON, and no more than a few kilobytes.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_af.data.batch import StepBatch
    from megatron_af.train.trainer import Trainer

Record = dict[str, float]
"""Numbers of one step: ``step``, ``loss``, ``loss/<data set>``, ``sample_loss/<data set>``, ``tokens``,
``tokens/<data set>``, ``grad_norm``, ``learning_rate``, ``tokens_per_second``, ``audio_seconds_per_second``, ``mfu``,
``data_wait``, ``memory_bytes``, ``eta_seconds``, ``gate_attn/<layer>``, ``gate_ffn/<layer>``, ``too_long/<data set>``
(questions left out so far); once there are any, ``skipped`` (steps without an update so far)."""


class Callback:
    """Base of all callbacks; every hook does nothing. They are called in the order in which they are given."""

    def on_start(self, trainer: "Trainer") -> None: ...

    def on_batch(self, trainer: "Trainer", batch: "StepBatch[Any]", waited: float) -> None:
        """A step begins; its batch was there after ``waited`` seconds."""

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        """A step is done. What is added to ``record`` is seen by the callbacks behind this one."""

    def on_save(self, trainer: "Trainer") -> None:
        """A checkpoint of the present step is about to be written; on all ranks alike."""

    def on_checkpoint(self, trainer: "Trainer", path: Path) -> None:
        """A checkpoint can be read at ``path``; with asynchronous saving, that is some steps after it was taken."""

    def on_end(self, trainer: "Trainer", reason: str) -> None:
        """``reason``: ``done``, ``stopped`` (by a signal) or ``failed``."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know, as JSON; rank 0's is stored."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned, on every rank, before the first step."""
