"""A configuration as one line of JSON, to hand from one process to another, and back.

    text = to_json(config)
    config = from_json(Config, text)
"""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_af.config.loading import read_values


def from_json[Schema](schema: type[Schema], text: str, overrides: Sequence[str] = ()) -> Schema:
    """The inverse of `to_json`, with ``key=value`` changes."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        return read_values(schema, Path(file.name), overrides)


def to_json(settings: Any) -> str:
    """A configuration as one line of JSON: only what differs from the defaults, as a person would have written it."""
    return json.dumps(_differences(settings), separators=(",", ":"))


def _differences(settings: Any) -> Any:
    values = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value == default:
            continue
        if dataclasses.is_dataclass(value):
            values[field.name] = _differences(value)
        elif isinstance(value, dict):
            values[field.name] = {
                key: _differences(entry) if dataclasses.is_dataclass(entry) else entry for key, entry in value.items()
            }
        elif isinstance(value, tuple):
            values[field.name] = [_differences(item) if dataclasses.is_dataclass(item) else item for item in value]
        else:
            values[field.name] = value
    return values
