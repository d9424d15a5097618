"""What an API server must have said before anybody relies on it: somebody else may answer at its address.

    job = checked(answer, JOB)          # raises ShapeError: "status.conditions[0].type: expected text, got nothing"

Kubernetes checks what it stores, and its client checks the kinds that it knows; of custom resources it hands on what
came. ``null`` is nothing, as in Kubernetes.
"""

from datetime import UTC, datetime
from typing import Any

TEXTS = {"*": str}
METADATA = {"name": str, "labels?": TEXTS, "annotations?": TEXTS, "creationTimestamp?": str, "deletionTimestamp?": str}
JOB = {
    "metadata": METADATA,
    "spec?": {"trainer?": {"numNodes?": int}},
    "status?": {
        "conditions?": [{"type": str, "status": str, "reason?": str, "message?": str, "lastTransitionTime?": str}],
        "trainerStatus?": {},
    },
}
JOBS = {"items": [JOB]}
SERVICE = {"metadata": METADATA, "spec": {"predictor": {"annotations?": TEXTS}}}
BEGINNING = datetime.min.replace(tzinfo=UTC)
_NAMES = {str: "text", int: "a whole number", dict: "an object", list: "a list", type(None): "nothing"}


class ShapeError(ValueError):
    """An answer of another shape; the message says where, what was expected and what stood there."""


def checked(value: Any, shape: Any, where: str = "") -> Any:
    """The answer without its nulls, where it has what ``shape`` names. A key with ``?`` may be missing; ``*`` is any.

    Raises:
        ShapeError: it has not.
    """
    kind: Any = shape if isinstance(shape, type) else type(shape)
    if type(value) is not kind:
        got = _NAMES.get(type(value), "a value")
        raise ShapeError(f"{where or 'the answer'}: expected {_NAMES[kind]}, got {got}")
    if isinstance(shape, list):
        entries: list[Any] = value
        return [checked(entry, shape[0], f"{where}[{place}]") for place, entry in enumerate(entries)]
    if isinstance(shape, dict):
        there: dict[str, Any] = {key: inner for key, inner in value.items() if inner is not None}
        inside = f"{where}." if where else ""
        for name, inner in shape.items():
            key = name.removesuffix("?")
            for found in there if key == "*" else [key] if key == name or key in there else []:
                there[found] = checked(there.get(found), inner, f"{inside}{found}")
        return there
    return value


def moment(value: datetime | str | None) -> datetime:
    """A time in whole seconds, as a creation's is; the beginning of time where none is known."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else value or BEGINNING
    except ValueError:  # an annotation is anybody's
        return BEGINNING
    return found.replace(microsecond=0, tzinfo=found.tzinfo or UTC)


def number(value: str | None) -> int:
    """Of a label; 0 where there is none."""
    return int(value) if value and value.isascii() and value.isdecimal() and len(value) < 10 else 0
