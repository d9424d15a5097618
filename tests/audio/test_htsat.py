"""HTS-AT: sizes, batching, gradients, freezing. tests/test_parity.py compares with the published code."""

import pytest
import torch

from megatron_af.audio.htsat import HTSAT, DropPath
from megatron_af.config import EncoderConfig, FrontEndConfig

FRONT_END = FrontEndConfig()
DEMO = EncoderConfig(
    embed_dim=16, depths=(2, 2, 2), heads=(1, 2, 4), patch_size=8, fusion=False, classes=0, stft_weights=False
)


def mel(windows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(windows, 1001, 64, generator=torch.Generator().manual_seed(seed)) * 20 - 40


def build(config: EncoderConfig = DEMO) -> HTSAT:
    torch.manual_seed(0)
    return HTSAT(FRONT_END, config)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (EncoderConfig(), 278_770_007),
        (EncoderConfig(depths=(2, 2, 6, 2)), 203_171_063),
        (EncoderConfig(embed_dim=96, depths=(2, 2, 6, 2)), 31_339_783),
    ],
)
def test_parameter_counts_are_the_published_ones(config, parameters):
    with torch.device("meta"):
        encoder = HTSAT(FRONT_END, config)
    assert sum(p.numel() for p in encoder.parameters()) == parameters


def test_every_parameter_but_the_carried_ones_gets_a_gradient():
    config = EncoderConfig(embed_dim=8, depths=(2, 2), heads=(1, 2), patch_size=16, drop_path=0.0)
    encoder = build(config)
    encoder(mel(2)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is None) == parameter.unused, name
    assert {n.split(".")[0] for n, p in encoder.named_parameters() if p.unused} == {
        "patch_embed", "tscam_conv", "head", "spectrogram_extractor", "logmel_extractor",
    }  # fmt: skip


def test_views_use_the_fusion_weights_and_never_learn_their_statistics():
    config = EncoderConfig(embed_dim=8, depths=(2, 2), heads=(1, 2), patch_size=16, drop_path=0.0)
    torch.manual_seed(0)
    encoder = HTSAT(FrontEndConfig(long_clips="views"), config).train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    clips = mel(8).unflatten(0, (2, 4))
    clips[1, 1:] = torch.nan  # no longer than a window
    features = encoder(clips)
    features.square().sum().backward()
    assert features.shape == (2, 64, 16) and features.isfinite().all()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is None) == parameter.unused, name
        assert parameter.unused == (not name.startswith(("bn0", "patch_embed", "layers", "norm"))), name
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())
    torch.testing.assert_close(encoder(clips[1:])[0], features[1])


def test_windows_do_not_see_each_other():
    encoder = build().eval()
    windows = mel(3)
    together = encoder(windows)
    assert together.shape == (3, 64, 64)
    for i in range(3):
        torch.testing.assert_close(encoder(windows[i : i + 1])[0], together[i], atol=1e-5, rtol=0)


def test_no_windows_give_no_tokens_and_zero_gradients():
    encoder = build()
    statistics = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    features = encoder(mel(0))
    assert features.shape == (0, 64, 64)
    features.sum().backward()
    gradients = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    assert {"bn0.weight", "patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight"} <= gradients.keys()
    assert not any(gradient.any() for gradient in gradients.values())
    torch.testing.assert_close(dict(encoder.named_buffers()), statistics, rtol=0, atol=0)


def test_token_order_is_frequency_half_then_time():
    """A change at the end of the window moves the last time steps of both halves most."""
    encoder = build().eval()
    before = mel(1)
    after = before.clone()
    after[:, -30:] += 30.0
    change = (encoder(after) - encoder(before)).norm(dim=-1).view(2, 32)
    assert (change.argmax(1) >= 28).all()
    low = before.clone()
    low[:, :, :8] += 30.0  # lowest mel bins: only the first half's own patches
    change = (encoder(low) - encoder(before)).norm(dim=-1).view(2, 32)
    assert change[0].mean() > change[1].mean()


def test_recompute_gives_the_same_gradients():
    config = EncoderConfig(**{**vars(DEMO), "drop_path": 0.5})
    plain, recomputed = build(config), build(EncoderConfig(**{**vars(config), "recompute": True}))
    gradients = []
    for encoder in (plain, recomputed):
        torch.manual_seed(1)
        encoder(mel(2)).square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_encoder_stays_in_evaluation_mode():
    encoder = build(EncoderConfig(**{**vars(DEMO), "drop_path": 0.9})).train()
    assert encoder.training
    for parameter in encoder.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(encoder(mel(2)), encoder(mel(2)))  # frozen after train() was called
    assert not encoder.train().training
    assert not any(m.training for m in encoder.modules())


def test_spec_augment_is_drawn_anew_in_training_only():
    encoder = build(EncoderConfig(**{**vars(DEMO), "drop_path": 0.0, "spec_augment": True})).train()
    windows = mel(2)
    plain = build(EncoderConfig(**{**vars(DEMO), "drop_path": 0.0})).eval()(windows)
    assert not torch.equal(encoder(windows), encoder(windows))
    torch.testing.assert_close(encoder.eval()(windows), plain)
    for parameter in encoder.train().parameters():
        parameter.requires_grad_(False)
    torch.testing.assert_close(encoder(windows), plain)


def test_drop_path_leaves_whole_windows_out_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    out = drop(torch.ones(4000, 3))
    torch.testing.assert_close(out.unique(), torch.tensor([0.0, 4 / 3]))
    assert (out == out[:, :1]).all()
    assert out.mean().item() == pytest.approx(1.0, abs=0.03)
    assert torch.equal(drop.eval()(torch.ones(8, 3)), torch.ones(8, 3))
