"""A run that is asked to end by a signal ends well."""

import signal
from typing import TYPE_CHECKING, Any

from megatron_af.train.callbacks.base import Callback

if TYPE_CHECKING:
    from megatron_af.train.trainer import Trainer


class StopOnSignal(Callback):
    """SIGTERM, SIGINT and SIGUSR1 (preemption) end the run after the step under way, with a checkpoint.

    No matter how often they come: a terminal and a launcher may both pass the same one on.
    """

    def on_start(self, trainer: "Trainer") -> None:
        def stop(signum: int, frame: Any) -> None:
            trainer.request_stop()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, stop)
