"""``tools/pretrain_af.py``, and every step's numbers to the last bit, with the samples of every rank, written down.

    torchrun … tests/faults/watched.py --config … stage=… name=…          # OUTPUT/NAME/steps.jsonl
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import pretrain_af

from megatron_af.train.callbacks import Callback, EndHangs, Record


class Watch(Callback):
    """One line for each step and rank, in one write: a process that is killed leaves whole lines."""

    def on_batch(self, trainer: Any, batch: Any, waited: float) -> None:
        self._ids = batch.sample_ids

    def on_step(self, trainer: Any, record: Record) -> None:
        group = trainer.groups
        line = {
            "step": trainer.step,
            "rank": dist.get_rank(),
            "loss": record["loss"],
            "grad_norm": record["grad_norm"],
            "samples": self._ids if group.model_rank == 0 else [],
            "data_rank": group.data_rank,
        }
        file = os.open(trainer.folder.parent / "steps.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, (json.dumps(line) + "\n").encode())
        os.close(file)


class Also(EndHangs):
    """Where the tool puts its last callback, ours goes along."""

    _watch_steps = Watch()

    def on_batch(self, trainer: Any, batch: Any, waited: float) -> None:
        super().on_batch(trainer, batch, waited)
        self._watch_steps.on_batch(trainer, batch, waited)

    def on_step(self, trainer: Any, record: Record) -> None:
        super().on_step(trainer, record)
        self._watch_steps.on_step(trainer, record)


def main() -> int:
    import megatron_af.train.callbacks as callbacks

    callbacks.EndHangs = Also  # type: ignore[misc]
    return pretrain_af.main()


if __name__ == "__main__":
    sys.exit(main())
