"""A signal asks the run to stop."""

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_af.train.callbacks.stop_on_signal import StopOnSignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_asks_to_stop_however_often_it_comes(number: signal.Signals) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    asked: list[int] = []
    trainer: Any = SimpleNamespace(request_stop=lambda: asked.append(1))
    try:
        StopOnSignal().on_start(trainer)
        for _ in range(2):
            os.kill(os.getpid(), number)
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    assert asked == [1, 1]
