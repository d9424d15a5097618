"""Where a run comes from, and its configuration flat."""

from dataclasses import dataclass

from megatron_af.config import Config
from megatron_af.tracking.provenance import flatten, provenance_tags


@dataclass
class Inner:
    width: int = 3
    names: tuple[str, ...] = ("a", "b")


@dataclass
class Outer:
    inner: Inner
    sets: dict[str, Inner]
    rate: float = 1e-4


def test_every_leaf_has_its_key() -> None:
    assert flatten(Outer(inner=Inner(), sets={"x": Inner(width=4, names=())})) == {
        "inner.width": "3",
        "inner.names": "a, b",
        "sets.x.width": "4",
        "sets.x.names": "",
        "rate": "0.0001",
    }
    assert flatten({"a": 1}, "stage") == {"stage.a": "1"}


def test_a_whole_configuration_has_no_two_leaves_of_one_key() -> None:
    flat = flatten(Config(name="x"))
    assert flat["name"] == "x" and flat["model.lm.hidden"] and not any(key.startswith(".") for key in flat)


def test_tags_name_packages_and_machine() -> None:
    tags = provenance_tags("8 x H100")
    assert tags["hardware.gpu"] == "8 x H100" and " x " in tags["hardware.cpu"]
    assert "torch 2." in tags["packages"] and "transformer-engine" not in tags["packages"].split("megatron-core")[0]
    assert all(isinstance(value, str) for value in tags.values())
