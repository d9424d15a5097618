"""What each field of a configuration shapes, said beside its type; whoever asks "is it the same?" asks this.

    seed: Weights[Seed] = 0                          # another seed is another run
    micro_batch_samples: Rounding[Count] = 8         # the same run, its sums rounded otherwise
    kept = values(config.curriculum["align"], WEIGHTS, ORDER, prefix="curriculum.align")

A run goes on from a checkpoint, and a stage is not trained again, as long as what shapes weights and data order is as
it was (``runs/identity.py``). A longer stage is the same stage, gone on with.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints


class Effect(Enum):
    """What follows from a field."""

    WEIGHTS = "the model and its updates"
    ORDER = "which samples are seen, in which order, and what they say"
    ROUNDING = "how the same step lies on the machines"
    LENGTH = "how long a stage is: another length extends it"
    ANSWERS = "what is measured, and how"
    FILES = "what preparation, indexing and release write: their readers see the digests of what was written"
    NOTHING = "nothing that is kept: places, logging, speed"


T = TypeVar("T")
Weights = Annotated[T, Effect.WEIGHTS]
Order = Annotated[T, Effect.ORDER]
Rounding = Annotated[T, Effect.ROUNDING]
Length = Annotated[T, Effect.LENGTH]
Answers = Annotated[T, Effect.ANSWERS]
Files = Annotated[T, Effect.FILES]
Nothing = Annotated[T, Effect.NOTHING]


def values(section: Any, *effects: Effect, prefix: str = "") -> dict[str, Any]:
    """Key -> value of every field below ``section`` that has one of these effects."""
    return {key: value for key, value, effect in walk(section, prefix) if effect in effects}


def walk(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, Effect | None]]:
    """(key, value, effect) of every field that is no section itself; None where nothing was declared."""
    for field in dataclasses.fields(section):
        key = f"{prefix}.{field.name}" if prefix else field.name
        kind: type = type(section)
        value, effect = getattr(section, field.name), effect_of(kind, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from walk(value, key)
        elif effect is None and isinstance(value, Mapping):
            for name, entry in value.items():
                yield from walk(entry, f"{key}.{name}")
        elif effect is not None or section_of(hints(kind)[field.name]) is None:
            yield key, value, effect


def fields_of(kind: type, prefix: str = "") -> Iterator[tuple[str, Effect | None]]:
    """The same of a schema, whatever its values: ``<name>`` stands for the keys of a mapping."""
    for field in dataclasses.fields(kind):
        key, hint = f"{prefix}{field.name}", hints(kind)[field.name]
        inner = section_of(hint)
        if inner is None:
            yield key, effect_of(kind, field.name)
        else:
            yield from fields_of(inner, f"{key}.<name>." if get_origin(hint) is dict else f"{key}.")


def section_of(hint: Any) -> type | None:
    """The section that a field holds, alone, in a mapping or optionally; None for a value."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    if get_origin(hint) is dict:
        return section_of(get_args(hint)[1])
    if get_origin(hint) in (Union, UnionType):
        return next((found for option in get_args(hint) if (found := section_of(option))), None)
    return None


def effect_of(kind: type, field: str) -> Effect | None:
    return next((mark for mark in marks(hints(kind)[field]) if isinstance(mark, Effect)), None)


def marks(hint: Any) -> tuple[Any, ...]:
    """What stands beside a type: its range, its effect."""
    return tuple(hint.__metadata__) if get_origin(hint) is Annotated else ()


@cache
def hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)
