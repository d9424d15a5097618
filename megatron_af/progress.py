"""How far a long job is: bars on a terminal, plain lines elsewhere, with the time that is left.

    with Progress() as progress:
        progress.update("scenes", done, total)               # as often as one likes
        progress.update("stage lm", 40, 350, "loss 1.31")
        progress.say("sounds: synthesised sources")

A line is ``scenes 120/600 20.0% | eta 1:10``: at the first call and the last, and between them every 30 s or 5%, never
two in a second. Where nobody knows how much there is (``total`` None), it is ``rows 1200``, every 30 s.
Colours follow the terminal and ``NO_COLOR``, as rich does.
"""

import math
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

LINE_SECONDS, LINE_SHARE = 30.0, 0.05
"""Most time, and most of the job, between two lines."""
LEAST_SECONDS = 1.0
"""Between two lines, but for the last: what is done at once is not worth twenty."""
BARS_PER_SECOND = 2
"""Times that bars are drawn: rich's ten take 8% of a core for eight bars, which training lacks where there are two."""


class Progress:
    """Parts of a job by name, each with its own count."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        columns = TextColumn("{task.description:<24}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%")
        times = TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn()
        self._bars = Bars(
            *columns, *times, console=self.console, disable=not self.console.is_terminal,
            refresh_per_second=BARS_PER_SECOND,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        """Name -> when it was first heard of, and how much was behind then."""
        self._said: dict[str, tuple[float, float]] = {}
        """Name -> when its last line was printed, and at which share."""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """A line of its own, above the bars."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def update(self, name: str, done: int, total: int | None, note: str = "") -> None:
        """``done`` of ``total`` parts of the work called ``name`` are behind."""
        if self.console.is_terminal:
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=total)
            shown = f"{name} ({note})" if note else name
            self._bars.update(self._tasks[name], completed=done, total=total, description=shown)
            return
        now = time.monotonic()
        if total is None:
            if now - self._said.setdefault(name, (now, 0.0))[0] >= LINE_SECONDS:
                self._said[name] = now, 0.0
                self._line(f"{name} {done}", note)
            return
        share = done / total if total else 1.0
        begun, first = self._begun.setdefault(name, (now, done))
        when, before = self._said.get(name, (-math.inf, -math.inf))
        last = share >= 1.0 > before
        wanted = LEAST_SECONDS if share - before >= LINE_SHARE else LINE_SECONDS
        if last or (share > before and now - when >= wanted):
            self._said[name] = now, share
            left = (now - begun) * (total - done) / (done - first) if done > first else math.nan
            left = 0.0 if done >= total else left
            self._line(f"{name} {done}/{total} {share:.1%}", note, f"eta {duration(left)}")

    def _line(self, *parts: str) -> None:
        self.say(" | ".join(filter(None, parts)))


def silent() -> Progress:
    """Of work that nobody watches: another rank tells it, or a larger job."""
    return Progress(Console(quiet=True))


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``; a dash while unknown."""
    if math.isnan(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
