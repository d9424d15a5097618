"""Fresh weights: drawn under their names, for every seed that a configuration may hold."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_af.config import Config, LMConfig
from megatron_af.config.ranges import keep_in_range
from megatron_af.decoder.family import LanguageFamily, family_of
from megatron_af.decoder.initialization import fresh

LARGEST = 2**32 - 1


def placed(name: str, *shape: int) -> Any:
    return SimpleNamespace(name=name, shape=torch.Size(shape))


def family(hidden: int, layers: int) -> LanguageFamily:
    return family_of(LMConfig(hidden=hidden, layers=layers))


@pytest.mark.parametrize("seed", [0, 1, LARGEST])
def test_every_seed_that_validation_lets_through_draws(seed: int) -> None:
    assert keep_in_range(Config(name="x", seed=seed))[1] == {}
    weight = fresh(placed("lm.decoder.layers.0.mlp.linear_fc1.weight", 64, 64), family(64, 2), seed)
    assert weight.std() == pytest.approx((2 / (5 * 64)) ** 0.5, rel=0.1)
    torch.Generator().manual_seed(seed + 100_000)  # as megatron-core offsets it by rank


def test_a_larger_seed_is_refused_by_name() -> None:
    assert keep_in_range(Config(name="x", seed=LARGEST + 1))[1] == {
        "seed": f"seed = {LARGEST + 1}: must be at least 0 and at most {LARGEST}"
    }


def test_names_and_seeds_draw_apart() -> None:
    draws = [
        fresh(placed(name, 8, 8), family(8, 2), seed)
        for name in ("lm.a.weight", "lm.b.weight")
        for seed in (0, 1, LARGEST - 1, LARGEST)
    ]
    assert all(not torch.equal(one, other) for i, one in enumerate(draws) for other in draws[:i])


def test_norms_gates_and_biases_begin_as_the_identity() -> None:
    assert fresh(placed("lm.decoder.layers.0.xattn.attention_norm.weight", 4), family(8, 2), 0).eq(1).all()
    assert fresh(placed("lm.decoder.layers.0.xattn.gate_attn", 1), family(8, 2), 0).eq(0).all()
    assert fresh(placed("lm.decoder.layers.0.self_attention.linear_qkv.bias", 4), family(8, 2), 0).eq(0).all()


def test_what_writes_into_the_residual_stream_is_smaller_and_blocks_are_uniform() -> None:
    inner = fresh(placed("lm.decoder.layers.0.mlp.linear_fc1.weight", 128, 128), family(128, 8), 0)
    written = fresh(placed("lm.decoder.layers.0.mlp.linear_fc2.weight", 128, 128), family(128, 8), 0)
    assert inner.std() / written.std() == pytest.approx(4.0, rel=0.05)
    block = fresh(placed("lm.decoder.layers.0.xattn.attention.linear_q.weight", 32, 100), family(128, 8), 0)
    assert 0.09 < block.abs().max() <= 0.1


def test_a_family_may_draw_otherwise() -> None:
    class Wide(type(family(8, 2))):  # type: ignore[misc]
        def initial_std(self, name: str) -> float:
            return 3.0 if name.endswith("linear_fc1.weight") else super().initial_std(name)

    wide, names = Wide(LMConfig(hidden=8, layers=2)), ("linear_fc1", "linear_fc2")
    inner, written = (fresh(placed(f"lm.decoder.layers.0.mlp.{name}.weight", 99, 99), wide, 0) for name in names)
    assert inner.std() == pytest.approx(3.0, rel=0.05) and written.std() < 0.2
