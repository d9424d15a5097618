"""A run that is asked to end by a signal ends well."""

import os
import signal
from typing import TYPE_CHECKING, Any

from megatron_af.train.callbacks.base import Callback

if TYPE_CHECKING:
    from megatron_af.train.trainer import Trainer


class StopOnSignal(Callback):
    """SIGTERM, SIGINT and SIGUSR1 (preemption) end the run after the step under way, with a checkpoint.

    No matter how often they come: a terminal and a launcher may both pass the same one on.
    """

    def __init__(self) -> None:
        self._asked = False

    def on_start(self, trainer: "Trainer") -> None:
        own = os.getpid()

        def stop(signum: int, frame: Any) -> None:
            if os.getpid() == own:  # and not of a writer that was forked from this process
                self._asked = True
                trainer.request_stop()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, stop)
        if self._asked:  # while one trainer gave way to another
            trainer.request_stop()

    def on_end(self, trainer: "Trainer", reason: str) -> None:
        if reason == "stopped" and trainer.rank == 0:
            saved = trainer.saved_step
            # of a loss that has left its course there is no checkpoint
            where = "there" if saved == trainer.step else f"step {saved}, behind which the loss left its course"
            print(f"stopped after step {trainer.step}; the same command goes on from {where}", flush=True)
