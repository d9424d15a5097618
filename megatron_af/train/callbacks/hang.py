"""A run that hangs ends, and says where.

A process may wait for ever in Python, in a collective whose peer is gone, or for data from a volume that does not
answer. When nothing has moved for ``launch.hang_seconds`` every process writes the stacks of its threads to
``OUTPUT/NAME/STAGE/hang/rank_N.txt`` and ends with code 1: another try goes on from the newest checkpoint.
"""

import faulthandler
import os
import sys
import threading
import time
from typing import IO, TYPE_CHECKING, Any

from megatron_af.entry import AGAIN
from megatron_af.train.callbacks.base import Callback, Record

if TYPE_CHECKING:
    from megatron_af.data.batch import StepBatch
    from megatron_af.train.trainer import Trainer

FOLDER = "hang"
OTHERS_SECONDS = 10.0
"""For the other processes to write theirs: the launcher ends all when the first has ended."""
GRACE_SECONDS = 60.0
"""After that long the interpreter itself is stuck, and its own watchdog, which needs no Python, does the same."""


class EndHangs(Callback):
    """Watches in a thread of its own; ``seconds`` = 0: not at all."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._moved = time.monotonic()
        self._done = threading.Event()
        self._file: IO[str] | None = None

    def on_start(self, trainer: "Trainer") -> None:
        if not self._seconds:
            return
        folder = trainer.folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"rank_{trainer.rank}.txt").open("a")
        self._move()
        threading.Thread(target=self._watch, args=(trainer,), name="hang", daemon=True).start()

    def on_batch(self, trainer: "Trainer", batch: "StepBatch[Any]", waited: float) -> None:
        self._move()

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        self._move()

    def on_checkpoint(self, trainer: "Trainer", path: object) -> None:
        self._move()

    def on_end(self, trainer: "Trainer", reason: str) -> None:
        if self._file:
            self._done.set()
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._file = None

    def _move(self) -> None:
        self._moved = time.monotonic()
        if self._file:
            faulthandler.dump_traceback_later(self._seconds + GRACE_SECONDS, exit=True, file=self._file)

    def _watch(self, trainer: "Trainer") -> None:
        assert self._file is not None
        while (left := self._moved + self._seconds - time.monotonic()) > 0:
            if self._done.wait(left):
                return
        self._file.write(f"rank {trainer.rank}, behind step {trainer.step}, {time.strftime('%F %T')}\n")
        self._file.flush()
        faulthandler.dump_traceback(self._file)
        if trainer.rank == 0:
            print(
                f"nothing has moved for {self._seconds:g} s behind step {trainer.step}: every process's stacks are in "
                f"{trainer.folder / FOLDER}, and the job ends; another try goes on from the newest checkpoint. What "
                "only takes long needs a larger launch.hang_seconds",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        time.sleep(OTHERS_SECONDS)
        os._exit(AGAIN)
