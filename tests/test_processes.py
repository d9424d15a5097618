"""Work shared by processes ends when one of them does, and when who shares it out stops."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from megatron_af.entry import AGAIN, Cancelled, sentence
from megatron_af.processes import ProcessLost, processes

pytestmark = pytest.mark.slow


def square(number: int) -> int:
    return number * number


def wait_long(begun: Path) -> None:
    begun.touch()
    time.sleep(600)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_answers_come_in_the_order_of_the_work() -> None:
    with processes(2) as pool:
        assert list(pool.map(square, range(20))) == [number * number for number in range(20)]


@pytest.mark.parametrize("key", ["", "data.prepare.workers"])
def test_one_that_is_killed_ends_the_work_and_is_told(key: str) -> None:
    with pytest.raises(ProcessLost, match="one of 2 processes") as raised, processes(2, key) as pool:
        pool.submit(die).result()
    message, code = sentence(raised.value) or ("", 0)
    assert code == AGAIN and ("data.prepare.workers, 2 here" in message) == bool(key)


def test_who_stops_waits_for_nothing_that_was_begun(tmp_path: Path) -> None:
    before = multiprocessing.active_children()
    with pytest.raises(Cancelled), processes(2) as pool:
        for number in range(8):
            pool.submit(wait_long, tmp_path / str(number))
        while not list(tmp_path.iterdir()):
            time.sleep(0.05)
        raise Cancelled
    assert multiprocessing.active_children() == before
