"""``tools/pretrain_af.py``, and every step's numbers to the last bit, with the samples of every rank, written down.

    torchrun … tests/faults/watched.py --config … stage=… name=…          # OUTPUT/NAME/steps.jsonl

With ``HANGS=python | collective | data | stopped`` in the environment the last rank waits for ever behind its eighth
step: in Python, in a collective that no other rank enters, for a volume that does not answer, or as a process that
somebody has stopped (SIGSTOP).
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import pretrain_af

from megatron_af.data.storage import DataRoot
from megatron_af.train.callbacks import Callback, EndHangs, Record


def waits_for_ever(*_: Any) -> Any:
    threading.Event().wait()


def hang(where: str) -> None:
    if where == "python":
        waits_for_ever()
    elif where == "collective":
        dist.barrier()
    elif where == "data":
        DataRoot.local = waits_for_ever  # type: ignore[method-assign]  # as `stat` on a volume that is away
    elif where == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)


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
        if trainer.step == 8 and dist.get_rank() == dist.get_world_size() - 1:
            hang(os.environ.get("HANGS", ""))


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
