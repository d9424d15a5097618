"""Components by name: one that is built in, or ``module:Class`` of anybody's own.

Family = component("qwen2", FAMILIES, "megatron_af.decoder.family:LanguageFamily")         # the class
Family = component("my_package.mine:MyFamily", FAMILIES, "megatron_af.decoder.family:LanguageFamily")
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from megatron_af.config.errors import suggestion


class UnknownComponent(ValueError):
    """A name that stands for no component; the message says what was expected."""


def component(name: str, builtin: Mapping[str, str], base: str) -> Any:
    """The class that a name stands for; its module is imported only now.

    Args:
        builtin: name -> ``module:Class``.
        base: ``module:Class`` that it must be a subclass of.

    Raises:
        UnknownComponent: neither a built-in name nor a class of that kind that can be imported.
    """
    if name not in builtin and ":" not in name:
        raise UnknownComponent(
            f"'{name}' is neither built in nor module:Class of your own{suggestion(name, list(builtin))}"
        )
    try:
        found = _imported(builtin.get(name, name))
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownComponent(f"'{name}' cannot be imported: {error}; expected module:Class") from error
    if not (isinstance(found, type) and issubclass(found, _imported(base))):
        kind = base.partition(":")[2]
        raise UnknownComponent(f"'{name}' is no {kind}: expected a subclass of {base.replace(':', '.')}")
    return found


@cache
def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
