"""What arrives together is done together, and every job gets its own result."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from megatron_af.serve.batcher import Batcher, Left


class Worker:
    """Doubles numbers, when it is let; fails on 13."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.begun.release()
        assert self.go.wait(60)
        if 13 in numbers:
            raise ValueError("thirteen")
        return [2 * number for number in numbers]


class Results(dict[int, Any]):
    """By what was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.come = threading.Semaphore(0)

    def of(self, number: int) -> Any:
        def tell(result: Any) -> None:
            assert number not in self, "told once"
            self[number] = result
            self.come.release()

        return tell

    def wait(self, count: int) -> None:
        for _ in range(count):
            assert self.come.acquire(timeout=60)


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def batcher(worker: Worker) -> Iterator[Batcher[int, int]]:
    batcher = Batcher(worker, together=3)
    yield batcher
    worker.go.set()
    batcher.close()


def test_jobs_of_one_key_are_done_together_in_their_order(worker: Worker, batcher: Batcher[int, int]) -> None:
    results = Results()
    batcher.submit(0, key="a", tell=results.of(0))
    worker.begun.acquire()
    for number, key in ((1, "a"), (2, "b"), (3, "a"), (4, "a"), (5, "a")):
        batcher.submit(number, key=key, tell=results.of(number))
    assert batcher.waiting == 5
    worker.go.set()
    results.wait(6)
    assert worker.batches == [[0], [1, 3, 4], [2], [5]]
    assert results == {number: 2 * number for number in range(6)}


def test_an_error_is_told_to_the_job_that_made_it(worker: Worker, batcher: Batcher[int, int]) -> None:
    results = Results()
    batcher.submit(0, key=0, tell=results.of(0))
    worker.begun.acquire()
    for number in (1, 13, 2):
        batcher.submit(number, key=0, tell=results.of(number))
    worker.go.set()
    results.wait(4)
    assert (results[1], results[2], str(results[13])) == (2, 4, "thirteen")
    assert worker.batches == [[0], [1, 13, 2], [1], [13], [2]]


def test_who_leaves_before_it_began_is_not_worked_for(worker: Worker, batcher: Batcher[int, int]) -> None:
    results = Results()
    first = batcher.submit(0, key=0, tell=results.of(0))
    worker.begun.acquire()
    second = batcher.submit(1, key=0, tell=results.of(1))
    batcher.leave(second)
    assert batcher.waiting == 0 and isinstance(results[1], Left)
    batcher.leave(second)  # told once
    batcher.leave(first)  # it goes on, for the others
    worker.go.set()
    results.wait(2)
    assert results[0] == 0 and worker.batches == [[0]]


def test_closing_ends_what_was_begun_and_leaves_the_rest(worker: Worker) -> None:
    results = Results()
    batcher = Batcher(worker, together=1)
    batcher.submit(0, key=0, tell=results.of(0))
    worker.begun.acquire()
    batcher.submit(1, key=0, tell=results.of(1))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    worker.go.set()
    closing.join()
    batcher.submit(2, key=0, tell=results.of(2))
    assert results[0] == 0 and isinstance(results[1], Left) and isinstance(results[2], Left)
    assert not batcher.is_alive
