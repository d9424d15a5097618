"""Every key that a configuration can have, with its type, default and meaning.

    text = describe()               # for a tool's --help; of another tree of dataclasses: describe(ServingConfig)
    for key, kind in schema_keys(): ...
"""

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Iterator
from dataclasses import MISSING
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from megatron_af.config import Config
from megatron_af.config.errors import shown

type_hints = cache(get_type_hints)


def describe(schema: type = Config) -> str:
    """Every key of a configuration with its type, default and docstring, as the end of a tool's ``--help``."""
    lines = ["configuration keys (in the YAML file, or as key=value):"]
    for key, kind, default, doc in leaves(schema):
        value = "(required)" if default is MISSING else f"= {shown(default)}"
        lines.append(f"  {key}: {_type_name(kind)} {value}")
        lines += textwrap.wrap(doc, width=110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def schema_keys(schema: type = Config) -> Iterator[tuple[str, Any]]:
    """Every key and its type; ``<name>`` stands for the keys of a mapping."""
    for key, kind, _, _ in leaves(schema):
        yield key, kind


def leaves(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """(key, type, default, docstring) of every leaf; ``<name>`` stands for the keys of a mapping."""
    hints, docs = type_hints(kind), _docstrings(kind)
    for field in dataclasses.fields(kind):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        entry = get_args(hint)[1] if get_origin(hint) is dict else None
        optional = get_args(hint)[0] if get_origin(hint) in (Union, types.UnionType) else None
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, f"{key}.")
        elif dataclasses.is_dataclass(optional):  # a section that may be left out whole
            yield key, hint, default, docs.get(field.name, "")
            yield from leaves(optional, f"{key}.")
        elif dataclasses.is_dataclass(entry):
            yield from leaves(entry, f"{key}.<name>.")
        else:
            yield key, hint, default, docs.get(field.name, "")


@cache
def _docstrings(kind: type) -> dict[str, str]:
    """Texts that stand under the fields of a dataclass; Python itself keeps none of them."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


def _type_name(kind: Any) -> str:
    origin, options = get_origin(kind), get_args(kind)
    if origin is tuple:
        return f"list of {_type_name(options[0])}"
    if origin is dict:
        return f"mapping to {_type_name(options[1])}"
    if origin is Literal:
        return " | ".join(str(option) for option in options)
    if origin in (Union, types.UnionType):
        return " | ".join("null" if option is type(None) else _type_name(option) for option in options)
    return str(kind.__name__)
