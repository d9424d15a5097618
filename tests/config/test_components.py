"""Components are found by a built-in name or by module:Class."""

from collections import OrderedDict

import pytest

from megatron_af.config.components import UnknownComponent, component

BUILTIN = {"ordered": "collections:OrderedDict", "broken": "no_such_module:Thing"}


def test_a_name_or_a_place_is_a_class() -> None:
    assert component("ordered", BUILTIN, "builtins:dict") is OrderedDict
    assert component("collections:OrderedDict", {}, "builtins:dict") is OrderedDict


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("orderd", "'orderd' is neither built in nor module:Class of your own; did you mean ordered?"),
        ("", "'' is neither built in nor module:Class of your own; known: ordered, broken"),
        ("broken", "'broken' cannot be imported: No module named 'no_such_module'; expected module:Class"),
        ("collections:Nothing", "has no attribute 'Nothing'; expected module:Class"),
        ("collections:", "expected module:Class"),
        (":Thing", "expected module:Class"),
        ("collections:UserList", "'collections:UserList' is no dict: expected a subclass of builtins.dict"),
        ("json:dumps", "'json:dumps' is no dict: expected a subclass of builtins.dict"),
    ],
)
def test_anything_else_says_what_was_expected(name: str, message: str) -> None:
    with pytest.raises(UnknownComponent) as error:
        component(name, BUILTIN, "builtins:dict")
    assert message in str(error.value)
