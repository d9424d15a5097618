"""The last numbers of a stage, on disk for whoever decides what comes next.

Trainer(config, [StageResult()])
read_result(config.stage_folder("align"))      # runs/paths.py: {"loss": 1.31, "gate_attn/0": 0.2, …}
"""

import json
import math
from collections import deque
from typing import TYPE_CHECKING, Any

from megatron_af.files import write
from megatron_af.runs.paths import RESULT
from megatron_af.train.callbacks import Callback, Record

if TYPE_CHECKING:
    from megatron_af.train.trainer import Trainer

AVERAGED_STEPS = 20


class StageResult(Callback):
    """On rank 0, writes the mean of every number over those of the last steps that have it, when the stage is done."""

    def __init__(self) -> None:
        self._last: deque[Record] = deque(maxlen=AVERAGED_STEPS)

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        self._last.append(record)

    def state_dict(self) -> dict[str, Any]:
        return {"last": list(self._last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last.extend(state["last"])

    def on_end(self, trainer: "Trainer", reason: str) -> None:
        if trainer.rank == 0 and reason == "done" and self._last:
            means = {}
            # also what the very last step lacks: of a small data set it may have no sample, of gates no look
            for name in dict.fromkeys(name for record in self._last for name in record):
                values = [record[name] for record in self._last if math.isfinite(record.get(name, math.nan))]
                if values:  # a step that was skipped has a loss that is none
                    means[name] = sum(values) / len(values)
            write(trainer.folder / RESULT, json.dumps(means | _counters(self._last[-1]), indent=1))


def _counters(record: Record) -> Record:
    """What is told of the whole run so far: the last value is the number, and no mean is."""
    return {
        name: value for name, value in record.items() if name in ("step", "skipped") or name.startswith("too_long/")
    }
