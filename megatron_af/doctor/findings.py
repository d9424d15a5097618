"""What a look at a machine finds, and how it is told.

    found = [Finding(part="disk", state=State.SLOW, told="3 GiB free in runs", fix="free some, or set output=")]
    print(table(found)); exit_code(found)
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text


class State(enum.Enum):
    """In the order of how bad it is."""

    WORKS = "works"
    ABSENT = "absent"
    """Not there, and not needed unless one means to use it."""
    SLOW = "slow"
    """Works, but slower, or for less long, than it could."""
    BROKEN = "broken"
    """Training or its tools will fail."""


COLORS = {State.WORKS: "green", State.ABSENT: "dim", State.SLOW: "yellow", State.BROKEN: "bold red"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One part of the machine."""

    part: str
    state: State
    told: str
    fix: str = ""
    """What to do about it; never empty for what is slow or broken."""

    def __post_init__(self) -> None:
        assert self.fix or self.state in (State.WORKS, State.ABSENT), f"{self.part}: say what mends it"


def exit_code(found: Sequence[Finding]) -> int:
    """2 where something is broken: the same command fails again before that is mended; 0 otherwise."""
    return 2 if any(finding.state is State.BROKEN for finding in found) else 0


def table(found: Sequence[Finding]) -> Table:
    """A line per finding, with its fix below."""
    grid = Table("part", "", "found", box=None, pad_edge=False)
    for finding in found:
        told = Text(finding.told)
        if finding.fix:
            told.append(f"\n-> {finding.fix}", COLORS[finding.state])
        grid.add_row(finding.part, Text(finding.state.value, COLORS[finding.state]), told)
    return grid


def verdict(found: Sequence[Finding]) -> str:
    """The whole in one sentence."""
    names = {state: [f.part for f in found if f.state is state] for state in State}
    if names[State.BROKEN]:
        return f"Broken: {', '.join(names[State.BROKEN])}. Mend that first."
    slow = f" Slower than it could be: {', '.join(names[State.SLOW])}." if names[State.SLOW] else ""
    return f"Everything that training needs works.{slow}"
