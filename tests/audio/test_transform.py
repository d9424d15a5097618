"""Transformation layers: positions, masks, precision. tests/test_parity.py has the published code."""

import math

import pytest
import torch

from megatron_af.audio.transform import Kept, TransformationLayers, rotary_table, rotate, sinusoids
from megatron_af.config import TransformConfig

CONFIG = TransformConfig(layers=2, heads=2, ffn=32)


def build(config: TransformConfig = CONFIG, dim: int = 64) -> TransformationLayers:
    torch.manual_seed(0)
    return TransformationLayers(dim, config)


def test_released_size():
    with torch.device("meta"):
        layers = TransformationLayers(2048, TransformConfig())
    assert sum(p.numel() for p in layers.parameters()) == 75_538_432


def test_padding_never_reaches_valid_tokens():
    layers = build()
    short, long = torch.randn(5, 64), torch.randn(9, 64)
    padded = torch.full((2, 9, 64), float("inf"))
    padded[0], padded[1, :5] = long, short
    valid = torch.arange(9) < torch.tensor([[9], [5]])
    padded[1, 5:] = 1e4
    together = layers(padded, valid)
    torch.testing.assert_close(together[0], layers(long[None], None)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[1, :5], layers(short[None], None)[0], atol=1e-5, rtol=1e-5)


def test_rotation_depends_on_distance_only_and_leaves_the_second_half_alone():
    cos, sin = rotary_table(40, 128, 4096.0, torch.device("cpu"))
    assert cos.shape == (40, 32)
    torch.manual_seed(0)
    q, k = torch.randn(128), torch.randn(128)
    turned_q, turned_k = rotate(q.expand(40, 128), cos, sin), rotate(k.expand(40, 128), cos, sin)
    scores = turned_q @ turned_k.T
    torch.testing.assert_close(scores[3, 10], scores[23, 30], atol=1e-4, rtol=0)
    assert torch.equal(turned_q[:, 64:], q[64:].expand(40, 64))


def test_tables_stay_float32_in_a_bf16_model():
    """Angles in bf16 would be off by radians after two minutes; only values may lose their last bits."""
    given: list[tuple[torch.Tensor, ...]] = []
    layers = build(TransformConfig(layers=1, heads=1, ffn=8)).bfloat16()
    layers.layers[0].register_forward_pre_hook(lambda module, inputs: given.append(inputs[1]))
    layers(torch.randn(1, 8000, 64).bfloat16(), None)
    position = torch.arange(8000, dtype=torch.float64)[:, None]
    angle = position * 4096.0 ** (-torch.arange(0, 32, 2, dtype=torch.float64) / 32)
    for table, exact in zip(given[0], (angle.cos(), angle.sin()), strict=True):
        assert (table - exact).abs().max() < 1e-3  # half a unit in the last place of float32 at 8000 radians
    x = torch.randn(8000, 64).bfloat16()
    turned, exactly = rotate(x, *given[0]), rotate(x.double(), angle.cos(), angle.sin())
    assert turned.dtype == torch.bfloat16
    assert (turned - exactly).abs().max() < 2**-8 * exactly.abs().max() + 1e-3


def test_sinusoidal_positions_are_added_to_the_scaled_features():
    """The reference's, by hand; nothing is rotated besides."""
    table = sinusoids(3, 4, torch.device("cpu"))
    angles = [[p, p / 100] for p in range(3)]
    by_hand = torch.tensor([[f(a) for a in row for f in (math.sin, math.cos)] for row in angles])
    torch.testing.assert_close(table, by_hand)
    layers = build(TransformConfig(layers=1, heads=2, ffn=8, positions="sinusoidal"))
    given: list[torch.Tensor] = []
    layers.layer_norm.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    layers.layers[0].register_forward_pre_hook(lambda module, inputs: given.append(inputs[1]))
    features = torch.randn(2, 4, 64)
    layers(features, None)
    positioned, rotation = given
    torch.testing.assert_close(positioned, features * 8 + sinusoids(4, 64, features.device))
    assert rotation is None


@pytest.mark.parametrize(
    ("config", "key"),
    [(TransformConfig(heads=5), "heads"), (TransformConfig(positions="alibi"), "positions")],
)
def test_impossible_settings_name_their_key(config, key):
    with pytest.raises(ValueError, match=f"model.transform.{key}"):
        build(config)


@pytest.mark.parametrize("positions", ["rope", "sinusoidal"])
def test_a_causal_clip_comes_window_by_window(positions: str) -> None:
    torch.manual_seed(0)
    config = TransformConfig(layers=2, heads=2, ffn=32, positions=positions)  # type: ignore[arg-type]
    layers = TransformationLayers(64, config, causal=4).double()
    for layer in layers.layers:
        layer.output.weight.data.mul_(10)  # so that tokens see each other well
    features_BLD = torch.randn(2, 12, 64, dtype=torch.float64)
    whole_BLD = layers(features_BLD, None)
    changed_BLD = features_BLD.clone()
    changed_BLD[:, 8:] *= -1
    later_BLD = layers(changed_BLD, None)
    assert torch.equal(later_BLD[:, :8], whole_BLD[:, :8]), "the past does not change"
    assert (later_BLD[:, 8:] - whole_BLD[:, 8:]).abs().max() > 0.1
    changed_BLD = features_BLD.clone()
    changed_BLD[:, 3] *= -1
    seen = (layers(changed_BLD, None) - whole_BLD).abs().amax((0, 2))
    assert (seen > 1e-6).all(), "a window sees itself, and those behind see it"
    valid_BL = torch.arange(12) < torch.tensor([[12], [6]])
    padded_BLD = layers(features_BLD, valid_BL)
    torch.testing.assert_close(padded_BLD[1, :6], layers(features_BLD[1:, :6], None)[0])
    kept, pieces = Kept(), []
    for begin, end in ((0, 4), (4, 12)):
        branch = kept.copy()
        pieces.append(layers(features_BLD[:1, begin:end], None, kept))
        torch.testing.assert_close(layers(features_BLD[:1, begin:end], None, branch), pieces[-1])
    torch.testing.assert_close(torch.cat(pieces, 1), whole_BLD[:1])
    assert kept.length == 12
