"""What every metric is: numbers for a list of answers, and for each of them what it was worth.

    class Shortness(Metric):                    # my_package/mine.py; in a benchmark: my_package.mine:Shortness
        def score(self, said):
            each = [100 / (1 + len(s.heard.split())) for s in said]
            return {"shortness": Scores(value=mean(each), each=each)}

A metric that lacks something on this machine (a program, a model, an endpoint) says so before it runs, and the report
names it as skipped. An answer that it cannot make out is unparseable: it counts as wrong and is counted by itself, and
never is anything drawn in its place.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from megatron_af.config import JudgeConfig
from megatron_af.evaluate.answered import Said


@dataclass(frozen=True, kw_only=True)
class Scores:
    value: float
    """Over all answers."""
    each: Sequence[float | None] = ()
    """Of each answer, whose mean ``value`` is or nearly is; None: unparseable. Empty: the metric is one of all answers
    together."""
    unparseable_counts: bool = True
    """As 0; False: it is in no mean, for it says nothing about the answer."""
    interval: tuple[float, float] | None = None
    """95% of such a metric's value, where it knows it; with ``each`` it is found by resampling."""
    notes: dict[str, Any] = field(default_factory=dict)
    """More that a report should say."""


@dataclass(frozen=True, kw_only=True)
class Means:
    """What metrics may use."""

    embed: Callable[[Sequence[str]], Tensor] | None = None
    """Texts -> unit vectors [T, J] of the run's CLAP; a collective."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    sentences: str = ""
    """Folder or hub name of a sentence-BERT."""
    folder: Path = Path()
    """Where it may keep what is done, so that a stopped measurement goes on."""
    name: str = ""
    """Of the benchmark, in files and messages."""


class Metric(ABC):
    collective: ClassVar[bool] = False
    """Every rank must measure it together, for its means are shared among them."""
    of_wordings: ClassVar[bool] = True
    """It is cheap enough, and means something, for answers to every wording."""

    def __init__(self, means: Means) -> None:
        self.means = means

    def missing(self) -> str:
        """What it needs and is not there, and how to have it; empty: it can run."""
        return ""

    @abstractmethod
    def score(self, said: Sequence[Said]) -> dict[str, Scores]:
        """Its numbers by name."""


def percent(each: Sequence[float | None], **notes: Any) -> Scores:
    """Of right (1), wrong (0) and unparseable (None) answers."""
    right = [None if one is None else float(one) for one in each]
    value = 100 * sum(one or 0.0 for one in right) / len(right) if right else 0.0
    return Scores(value=value, each=right, notes=notes)
