"""Components by name: one that is built in, or ``module:Class`` of anybody's own.

Objective = component("answer", OBJECTIVES)             # the class
Objective = component("my_package.mine:MyObjective", OBJECTIVES)
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from megatron_af.config.errors import suggestion


class UnknownComponent(ValueError):
    """A name that stands for no component; the message says what was expected."""


def component(name: str, builtin: Mapping[str, str]) -> Any:
    """The class that a name stands for; its module is imported only now.

    Args:
        builtin: name -> ``module:Class``.

    Raises:
        UnknownComponent: neither a built-in name nor a class that can be imported.
    """
    if name not in builtin and ":" not in name:
        raise UnknownComponent(
            f"'{name}' is neither built in nor module:Class of your own{suggestion(name, list(builtin))}"
        )
    module, _, attribute = builtin.get(name, name).partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownComponent(f"'{name}' cannot be imported: {error}; expected module:Class") from error
