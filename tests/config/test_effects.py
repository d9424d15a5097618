"""Every field of every section says what it shapes, and whoever asks gets the fields of one effect."""

from dataclasses import dataclass, field

import pytest

from megatron_af.config import Config, DataConfig, DatasetConfig, ImportConfig, StageConfig
from megatron_af.config.effects import Effect, Order, Rounding, Weights, fields_of, values, walk
from megatron_af.config.ranges import Count


@pytest.mark.parametrize(("key", "effect"), list(fields_of(Config)), ids=lambda part: str(part))
def test_every_field_declares_what_it_shapes(key: str, effect: Effect | None) -> None:
    assert effect is not None, f"{key}: write Weights[…], Order[…], Rounding[…], … around its type (config/effects.py)"


def test_all_sections_are_walked() -> None:
    keys = {key for key, _ in fields_of(Config)}
    assert {"seed", "model.lm.layers", "curriculum.<name>.optimizer.beta1", "scenes.sets.<name>.questions"} <= keys
    assert "data.datasets.<name>.origin.format" in keys and "curriculum.<name>.exit_gate.<name>.min" in keys


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: Weights[Count] = 1
    forgotten: int = 2


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    named: dict[str, Inner] = field(default_factory=dict)
    maybe: Inner | None = None
    blend: Order[dict[str, float]] = field(default_factory=dict)
    rows: Rounding[Count] = 3


def test_a_field_without_a_declaration_is_found_wherever_it_stands() -> None:
    undeclared = [key for key, effect in fields_of(Outer) if effect is None]
    assert undeclared == ["inner.forgotten", "named.<name>.forgotten", "maybe.forgotten"]


def test_values_of_an_effect_by_key() -> None:
    outer = Outer(named={"a": Inner(width=5)}, blend={"x": 1.0})
    assert values(outer, Effect.WEIGHTS) == {"inner.width": 1, "named.a.width": 5}
    assert values(outer, Effect.ORDER, Effect.ROUNDING, prefix="p") == {"p.blend": {"x": 1.0}, "p.rows": 3}
    assert ("inner.forgotten", 2, None) in list(walk(outer))
    assert not any(key.startswith("maybe") for key, *_ in walk(outer))


def test_what_lies_beside_a_section_keeps_its_effect() -> None:
    config = Config(
        name="x",
        curriculum={"align": StageConfig(steps=7)},
        data=DataConfig(
            datasets={"a": DatasetConfig(manifest="a", origin=ImportConfig(format="csv", path="a.csv"))}
        ),
    )
    assert values(config, Effect.LENGTH) == {
        "curriculum.align.steps": 7, "curriculum.align.passes": 0.0, "curriculum.align.watch.patience": 0,
    }  # fmt: skip
    files = values(config, Effect.FILES)
    assert files["data.datasets.a.origin.path"] == "a.csv" and "data.datasets.a.manifest" not in files
    assert values(config, Effect.ORDER)["data.datasets.a.manifest"] == "a"
