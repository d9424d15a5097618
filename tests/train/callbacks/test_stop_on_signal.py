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


def test_what_comes_between_two_trainers_stops_the_second_one(capsys: pytest.CaptureFixture[str]) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    asked: list[str] = []
    first: Any = SimpleNamespace(request_stop=lambda: asked.append("first"))
    second: Any = SimpleNamespace(request_stop=lambda: asked.append("second"), rank=0, step=7, saved_step=7)
    try:
        callback = StopOnSignal()
        callback.on_start(first)
        os.kill(os.getpid(), signal.SIGTERM)
        callback.on_start(second)
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    assert asked == ["first", "second"]
    callback.on_end(second, "done")
    callback.on_end(second, "stopped")
    assert capsys.readouterr().out == "stopped after step 7; the same command goes on from there\n"
    second.saved_step = 4
    callback.on_end(second, "stopped")
    assert "goes on from step 4, behind which the loss left its course" in capsys.readouterr().out
