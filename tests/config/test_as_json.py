"""A configuration through one line of JSON and back: nothing lost, nothing said that is a default."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from megatron_af.config import Config, ConfigError, StageConfig
from megatron_af.config.as_json import from_json, to_json
from megatron_af.config.loading import CONFIGS, load_config


@dataclass(frozen=True, kw_only=True)
class Part:
    size: int = 3
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str = ""
    part: Part = field(default_factory=Part)
    parts: dict[str, Part] = field(default_factory=dict)
    row: tuple[Part, ...] = ()


def test_only_what_differs_is_written_and_on_one_line() -> None:
    assert to_json(Whole()) == "{}"
    whole = Whole(name="x\ny", part=Part(size=4), parts={"a": Part(), "b": Part(names=("q", "r"))}, row=(Part(size=1),))
    text = to_json(whole)
    assert "\n" not in text
    assert json.loads(text) == {
        "name": "x\ny", "part": {"size": 4}, "parts": {"a": {}, "b": {"names": ["q", "r"]}}, "row": [{"size": 1}],
    }  # fmt: skip
    assert from_json(Whole, text) == whole


def test_overrides_come_over_what_was_written() -> None:
    assert from_json(Whole, to_json(Whole(part=Part(size=4))), ["part.size=5"]).part.size == 5
    with pytest.raises(ConfigError):
        from_json(Whole, '{"nam": "x"}')


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_run_survives(path: Path) -> None:
    config = load_config(path)
    assert from_json(Config, to_json(config)) == config


def test_what_yaml_would_read_as_something_else_stays_text() -> None:
    config = Config(name="1e3", curriculum={"on": StageConfig(), "007": StageConfig(steps=1)}, stage="on")
    assert from_json(Config, to_json(config)) == config
