"""One thread that answers everybody together: who asks while others are being answered joins them at their next token.

    engine = Engine(model, root, together=16)
    job = engine.submit(row, decodings, tell)          # tell(choice, Piece | Answer | Exception), from that thread
    engine.leave(job)                                   # whoever asked has gone

What is wrong with one request is told to it alone: where requests that came together cannot join, each tries alone.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from megatron_af.data.rows import Row
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.writing import Answer, Piece, Tell

GATHER_SECONDS = 0.005
"""After the first request of an idle engine: what was sent at the same time takes a moment to be read."""

type Event = Piece | Answer | Exception


class Answers(Protocol):
    """What the engine asks of a model: ``LoadedModel``."""

    def join(self, rows: Sequence[Row], decodings: Sequence[Decoding], root: Path, tell: Sequence[Tell]) -> None: ...

    def step(self) -> int:
        """One more token of each row; how many go on."""

    def abandon(self) -> None: ...


class Left(Exception):
    """The request was not begun, because whoever asked has gone, or the engine was closed."""


@dataclass(eq=False)
class Job:
    """A request, with a row for each of its choices."""

    row: Row
    decodings: Sequence[Decoding]
    tell: Callable[[int, Event], None]
    gone: bool = False
    open: int = field(init=False)
    """Choices that were not told their end."""

    def __post_init__(self) -> None:
        self.open = len(self.decodings)

    def fail(self, error: Exception) -> None:
        if self.open:
            self.open = 0
            self.tell(0, error)

    def listener(self, choice: int) -> Tell:
        def said(event: Piece | Answer) -> bool:
            self.open -= isinstance(event, Answer)
            self.tell(choice, event)
            return not self.gone

        return said


class Engine:
    """
    Args:
        root: where the rows' clips lie.
        together: most answers that are written at the same time.
        watch: told how many are, with every token.
    """

    def __init__(
        self, model: Answers, root: Path, *, together: int, watch: Callable[[int], None] = lambda count: None
    ) -> None:
        self._model, self._root, self._together, self._watch = model, root, together, watch
        self._waiting: list[Job] = []
        self._begun: list[Job] = []
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that were not begun."""
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, row: Row, decodings: Sequence[Decoding], tell: Callable[[int, Event], None]) -> Job:
        """Ask for an answer by each of ``decodings``; ``tell`` hears pieces and the end of each, or one error."""
        job = Job(row, decodings, tell)
        with self._change:
            closed = self._closed
            if not closed:
                self._waiting.append(job)
                self._change.notify()
        if closed:
            job.fail(Left())
        return job

    def leave(self, job: Job) -> None:
        """Forget a job; what was begun of it ends at its next piece."""
        job.gone = True
        with self._change:
            was_waiting = job in self._waiting
            if was_waiting:
                self._waiting.remove(job)
        if was_waiting:
            job.fail(Left())

    def close(self) -> None:
        """Ends the thread when what was begun is answered."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()
        for job in list(self._waiting):
            self.leave(job)

    def _run(self) -> None:
        going = 0
        while True:
            arrived = self._next(going)
            if not arrived and not going:
                return
            if arrived:
                self._begin(arrived)
            going = self._one_token()

    def _one_token(self) -> int:
        """More of every answer that was begun; how many go on."""
        self._begun = [job for job in self._begun if job.open]
        if not self._begun:
            return 0
        self._watch(sum(job.open for job in self._begun))
        try:
            return self._model.step()
        except Exception as error:
            self._model.abandon()
            for job in self._begun:
                job.fail(error)
            return 0

    def _next(self, going: int) -> list[Job]:
        """The oldest jobs that there is room for; none when the engine is closed. Waits while nothing goes on."""
        with self._change:
            if not going:
                idle = not self._waiting
                self._change.wait_for(lambda: self._waiting or self._closed)
                if idle:
                    self._change.wait_for(lambda: self._closed, timeout=GATHER_SECONDS)
            chosen: list[Job] = []
            while self._waiting and not self._closed:
                job = self._waiting[0]
                if going and going + len(job.decodings) > self._together:
                    break
                going += len(job.decodings)
                chosen.append(self._waiting.pop(0))
            return chosen

    def _begin(self, jobs: Sequence[Job]) -> None:
        asked = [(job, choice) for job in jobs for choice in range(len(job.decodings))]
        try:
            self._model.join(
                [job.row for job, _ in asked],
                [job.decodings[choice] for job, choice in asked],
                self._root,
                [job.listener(choice) for job, choice in asked],
            )
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._begin([job])
            else:
                jobs[0].fail(error)
            return
        self._begun += jobs
