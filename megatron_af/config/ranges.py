"""Which numbers a configuration may hold, said where each field is declared, and the search for those it may not.

workers: Nothing[Count] = 1                                  # data.py
usable, problems = keep_in_range(config)            # every number that lies outside, by key
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from megatron_af.config.effects import hints, marks


@dataclass(frozen=True, kw_only=True)
class Range:
    """Values that a number may have; a side that is not named is open, and no number may be infinite or NaN."""

    min: float = -math.inf
    above: float = -math.inf
    max: float = math.inf
    below: float = math.inf

    def problem(self, value: float) -> str:
        """What ``value`` must be and is not; empty where it fits."""
        if math.isfinite(value) and value >= self.min and value <= self.max and self.above < value < self.below:
            return ""
        sides = (("at least", self.min), ("above", self.above), ("at most", self.max), ("below", self.below))
        limits = [f"{word} {side}" for word, side in sides if math.isfinite(side)]
        return f"must be {' and '.join(limits) or 'a finite number'}"

    @property
    def inside(self) -> float:
        """Some value that fits."""
        return self.min if math.isfinite(self.min) else self.above + 1 if math.isfinite(self.above) else 0.0


Count = Annotated[int, Range(min=1)]
Whole = Annotated[int, Range(min=0)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(min=0)]
Fraction = Annotated[float, Range(min=0, max=1)]
BelowOne = Annotated[float, Range(min=0, below=1)]
Seed = Annotated[int, Range(min=0, max=2**32 - 1)]
"""What a generator on the CPU tells apart."""
ANY = Range()


def keep_in_range[Section](section: Section) -> tuple[Section, dict[str, str]]:
    """The same tree of dataclasses with numbers that fit, for checks that divide by them, and key -> problem of
    every number that had to be changed."""
    problems: dict[str, str] = {}
    return _fit(type(section), section, "", problems), problems


def _fit(hint: Any, value: Any, key: str, problems: dict[str, str]) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _fit_section(value, key, problems)
    allowed = next((mark for mark in marks(hint) if isinstance(mark, Range)), ANY)
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    origin, options = get_origin(hint), get_args(hint)
    if isinstance(value, Mapping | tuple) and not options:
        return value  # of another type than the field, which others tell
    if isinstance(value, Mapping):
        return {name: _fit(options[1], inner, f"{key}.{name}", problems) for name, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(_fit(options[0], inner, f"{key}[{i}]", problems) for i, inner in enumerate(value))
    if origin in (Union, UnionType) and value is not None:
        (hint,) = (option for option in options if option is not type(None))
        return _fit(hint, value, key, problems)
    if isinstance(value, bool) or not isinstance(value, int | float) or not (problem := allowed.problem(value)):
        return value
    problems[key] = f"{key} = {value}: {problem}"
    return type(value)(allowed.inside)


def _fit_section(section: Any, key: str, problems: dict[str, str]) -> Any:
    kind: Any = type(section)
    prefix = f"{key}." if key else ""
    return replace(
        section,
        **{
            field.name: _fit(hints(kind)[field.name], getattr(section, field.name), f"{prefix}{field.name}", problems)
            for field in fields(section)
        },
    )
