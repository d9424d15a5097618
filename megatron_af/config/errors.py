"""What a configuration that cannot run raises, and how its message helps."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

MOST_TRIED = 1_000_000


class ConfigError(ValueError):
    """A configuration that cannot run; the message names every problem at once.

    ``problems`` holds one line each: key, where it stands, what was expected, what to change.
    """

    def __init__(self, subject: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        count = {0: "", 1: ": 1 problem"}.get(len(problems), f": {len(problems)} problems")
        super().__init__("\n".join([f"{subject}{count}", *(f"  - {problem}" for problem in problems)]))


def suggestion(name: str, known: Sequence[str]) -> str:
    """``; did you mean …?`` where something known is close, or else what is known."""
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(known)}" if known else ""


def shown(value: Any) -> str:
    """A value as YAML would write it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = f"'{value}'" if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)
    return textwrap.shorten(text, 80, placeholder=" …")


def divides(divisor_key: str, divisor: int, key: str, value: int) -> Iterator[str]:
    """The problem that ``divisor`` leaves a rest, with the divisors that do not."""
    if value % divisor:
        fits = listed(divisors(value))
        yield f"{divisor_key} = {divisor} does not divide {key} = {value}: set {divisor_key} to one of {fits}"


def divisors(value: int) -> list[int]:
    """In order; all of a size that anything has, of larger numbers those that are found in a moment."""
    small = [d for d in range(1, min(math.isqrt(value), MOST_TRIED) + 1) if value % d == 0]
    return sorted({*small, *(value // d for d in small)})


def listed(values: Sequence[object], most: int = 12) -> str:
    some = ", ".join(map(str, values[:most])) or "(none)"
    return some + (", …" if len(values) > most else "")
