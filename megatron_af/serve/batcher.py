"""Work that arrives while other work is being done waits, and is then done together.

    batcher = Batcher(do, together=16)
    job = batcher.submit(row, key=64, tell=print)     # tell(result), once, from any thread
    batcher.leave(job)                                # whoever asked has gone

``do`` gets the things of jobs of one key and returns a result for each. Where it raises for several, each is done
alone, so that nobody gets an error that is another one's.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

GATHER_SECONDS = 0.005
"""After the first job of an idle batcher: what was sent at the same time takes a moment to be read."""


class Left(Exception):
    """The job was not begun, because whoever asked has gone, or the batcher was closed."""


@dataclass(eq=False, frozen=True)
class Job[Thing, Result]:
    """Something to be done."""

    thing: Thing
    key: Hashable
    tell: Callable[[Result | Exception], None]


class Batcher[Thing, Result]:
    """One thread that does jobs, many at a time, in the order they came.

    Args:
        together: most jobs that are done at once.
        watch: told how many are, whenever some are begun.
    """

    def __init__(
        self,
        do: Callable[[Sequence[Thing]], Sequence[Result]],
        *,
        together: int,
        watch: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._do, self._together, self._watch = do, together, watch
        self._jobs: list[Job[Thing, Result]] = []
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that were not begun."""
        return len(self._jobs)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, thing: Thing, *, key: Hashable, tell: Callable[[Result | Exception], None]) -> Job[Thing, Result]:
        job = Job(thing, key, tell)
        with self._change:
            closed = self._closed
            if not closed:
                self._jobs.append(job)
                self._change.notify()
        if closed:
            tell(Left())
        return job

    def leave(self, job: Job[Thing, Result]) -> None:
        """Forget a job that was not begun; one that was goes on, for the others in its batch."""
        with self._change:
            was_waiting = job in self._jobs
            if was_waiting:
                self._jobs.remove(job)
        if was_waiting:
            job.tell(Left())

    def close(self) -> None:
        """Ends the thread after what it is doing."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()
        for job in list(self._jobs):
            self.leave(job)

    def _run(self) -> None:
        while jobs := self._next():
            self._watch(len(jobs))
            self._finish(jobs)

    def _next(self) -> list[Job[Thing, Result]]:
        """The oldest job with others of its key; none when the batcher is closed."""
        with self._change:
            while not self._closed:
                idle = not self._jobs
                self._change.wait_for(lambda: self._jobs or self._closed)
                if idle:
                    self._change.wait_for(lambda: self._closed, timeout=GATHER_SECONDS)
                if self._jobs and not self._closed:
                    key = self._jobs[0].key
                    chosen = [job for job in self._jobs if job.key == key][: self._together]
                    self._jobs = [job for job in self._jobs if job not in chosen]
                    return chosen
        return []

    def _finish(self, jobs: Sequence[Job[Thing, Result]]) -> None:
        results: Sequence[Result | Exception]
        try:
            results = self._do([job.thing for job in jobs])
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._finish([job])
                return
            results = [error]
        for job, result in zip(jobs, results, strict=True):
            job.tell(result)
