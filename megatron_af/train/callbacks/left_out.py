"""Questions that were left out because they fit into no text row."""

from typing import TYPE_CHECKING, Any

from megatron_af.train.callbacks.base import Callback, Record

if TYPE_CHECKING:
    from megatron_af.train.trainer import Trainer


class LeftOut(Callback):
    """Adds them up over the run: ``too_long/<data set>`` of a step becomes the number so far, be it 0: an exit gate may
    ask that it stays low."""

    def __init__(self) -> None:
        self._so_far: dict[str, float] = {}

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        for name, count in record.items():
            if name.startswith("too_long/"):
                self._so_far[name] = self._so_far.get(name, 0.0) + count
        record.update({f"too_long/{name}": 0.0 for name in trainer.stage.blend} | self._so_far)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._so_far)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._so_far = dict(state)
