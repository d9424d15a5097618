"""Every shipped configuration shrinks to one that runs, with its structure kept."""

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import AugmentConfig, Config, StageConfig
from megatron_af.config.loading import CONFIGS, load_config
from megatron_af.prove.layouts import ALONE, layouts
from megatron_af.prove.shrink import laid_out, shrink, small_layers
from megatron_af.runs.check import check

TOP_FILES = sorted(CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("path", TOP_FILES, ids=lambda path: path.stem)
def test_every_stage_of_a_shipped_run_can_be_proven(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    for stage in config.curriculum:
        small = shrink(config, stage, tmp_path)
        for processes, parallel in layouts(config.parallel, 4).values():
            assert check(laid_out(small, parallel, "x"), processes) == []
        large, lm, encoder = config.model, small.model.lm, small.model.encoder
        assert (lm.family, lm.tied, lm.kv_heads == lm.heads) == (
            large.lm.family, large.lm.tied, large.lm.kv_heads == large.lm.heads
        )  # fmt: skip
        assert (encoder.kind, encoder.vector) == (large.encoder.kind, large.encoder.vector)
        assert small.model.transform.positions == large.transform.positions
        assert small.model.cross_attention.interval == large.cross_attention.interval
        kept, was = small.curriculum[stage], config.curriculum[stage]
        assert (kept.objective, kept.blend, bool(kept.lora)) == (was.objective, was.blend, bool(was.lora))
        assert (kept.trainable, kept.frozen) == (was.trainable, was.frozen)
        assert bool(kept.pack_tokens) == bool(was.pack_tokens)
        assert lm.hidden < 128 and small.precision == "fp32" and kept.steps == 4


@pytest.mark.parametrize(
    ("layers", "interval", "expected"), [(36, 1, 4), (24, 3, 6), (24, 8, 16), (24, 24, 24), (2, 1, 2), (4, 4, 4)]
)
def test_layers_hold_two_gated_blocks_where_there_are_two(layers: int, interval: int, expected: int) -> None:
    assert small_layers(layers, interval) == expected


def test_single_layers_are_named_at_the_same_height(tmp_path: Path) -> None:
    stage = StageConfig(trainable=("lm.decoder.layers.35.*", "lm.decoder.layers.18.mlp.*", "lm.*.xattn.*"), blend={})
    config = Config(name="x", curriculum={"a": stage})
    small = shrink(config, "a", tmp_path).curriculum["a"]
    assert small.trainable == ("lm.decoder.layers.3.*", "lm.decoder.layers.2.mlp.*", "lm.*.xattn.*")


def test_nothing_is_dropped_at_random(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "demo.yaml")
    encoder = replace(config.model.encoder, drop_path=0.3, spec_augment=True)
    augmented = replace(config.curriculum["tune"], augment=AugmentConfig(time_seconds=0.64, mel_bins=8))
    config = replace(config, curriculum={**config.curriculum, "tune": augmented})
    small = shrink(replace(config, model=replace(config.model, encoder=encoder)), "tune", tmp_path)
    assert (small.model.encoder.drop_path, small.model.encoder.spec_augment) == (0.0, False)
    assert small.curriculum["tune"].augment is None and check(laid_out(small, ALONE, "x"), 1) == []


def test_a_stage_that_is_measured_in_any_way_can_be_proven(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "demo.yaml")
    (other,) = list(config.data.datasets)[:1]
    measured = replace(config.curriculum["tune"], evaluation=(other,), calibrate=other)
    small = shrink(replace(config, curriculum={"tune": measured}), "tune", tmp_path)
    assert check(laid_out(small, ALONE, "x"), 1) == []
