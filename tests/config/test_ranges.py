"""Every number of a configuration has a range, and what lies outside is named by its key."""

import math
from dataclasses import replace
from typing import Any

import pytest

from megatron_af.config import (
    BoundsConfig,
    Config,
    DatasetConfig,
    EncoderConfig,
    ModelConfig,
    OptimizerConfig,
    StageConfig,
)
from megatron_af.config.ranges import keep_in_range
from megatron_af.runs.check import check
from tests import tiny

DATASET = DatasetConfig(manifest="a.jsonl")


def changed(value: Any, path: list[str], new: Any) -> Any:
    if not path:
        return new
    if isinstance(value, dict):
        return value | {path[0]: changed(value[path[0]], path[1:], new)}
    return replace(value, **{path[0]: changed(getattr(value, path[0]), path[1:], new)})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model.front_end.hop_samples", 0, "at least 1"),
        ("model.front_end.fft_size", 0, "at least 1"),
        ("model.front_end.sample_rate", 0, "at least 1"),
        ("model.encoder.patch_size", 0, "at least 1"),
        ("model.encoder.embed_dim", 0, "at least 1"),
        ("model.encoder.drop_path", 1.0, "at least 0 and below 1"),
        ("model.cross_attention.heads", 0, "at least 1"),
        ("model.cross_attention.head_dim", 0, "at least 1"),
        ("model.lm.layers", 0, "at least 1"),
        ("parallel.pipeline", 0, "at least 1"),
        ("data.workers", -1, "at least 0"),
        ("data.max_replaced_fraction", 1.5, "at least 0 and at most 1"),
        ("checkpoint.every_steps", -5, "at least 0"),
        ("seed", -1, "at least 0 and at most 4294967295"),
        ("log_every_steps", 0, "at least 1"),
        ("curriculum.stage.pack_tokens", -1, "at least 0"),
        ("curriculum.stage.optimizer.learning_rate", math.inf, "above 0"),
        ("curriculum.stage.optimizer.learning_rate", math.nan, "above 0"),
        ("curriculum.stage.optimizer.clip_norm", -1.0, "at least 0"),
        ("curriculum.stage.optimizer.warmup_steps", -3, "at least 0"),
        ("curriculum.stage.optimizer.beta2", 1.0, "at least 0 and below 1"),
        ("curriculum.stage.blend.a", math.nan, "a finite number"),
    ],
)
def test_a_number_outside_its_range_is_the_only_problem(key: str, value: float, expected: str) -> None:
    """Nothing divides by it, and nothing that follows from it is reported beside it."""
    config = tiny.config()
    config = replace(config, data=replace(config.data, datasets={"a": DATASET, "b": DATASET}))
    config = changed(config, ["curriculum", "stage", "max_text_tokens"], 64)
    assert check(config, 1) == []
    assert check(changed(config, key.split("."), value), 1) == [f"{key} = {value}: must be {expected}"]


def test_lists_mappings_and_open_bounds_are_searched() -> None:
    stage = StageConfig(exit_gate={"loss": BoundsConfig(min=math.inf)}, optimizer=OptimizerConfig(eps=0.0))
    encoder = EncoderConfig(depths=(2, 0), heads=(-1, 1))
    config = Config(name="x", model=ModelConfig(encoder=encoder), curriculum={"s": stage})
    usable, problems = keep_in_range(config)
    assert list(problems) == [
        "model.encoder.depths[1]",
        "model.encoder.heads[0]",
        "curriculum.s.optimizer.eps",
        "curriculum.s.exit_gate.loss.min",
    ]
    assert usable.model.encoder.depths == (2, 1) and usable.curriculum["s"].optimizer.eps > 0
    assert keep_in_range(usable) == (usable, {})


def test_other_stages_are_not_judged() -> None:
    config = tiny.config()
    config = replace(config, curriculum={**config.curriculum, "later": StageConfig(steps=0)})
    assert not [problem for problem in check(config, 1) if "later" in problem]
    assert [problem for problem in check(replace(config, stage=""), 1) if "curriculum.later.steps = 0" in problem]
