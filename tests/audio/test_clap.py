"""CLAP's towers: clips of several windows, the joint space, the temperature."""

import math

import pytest
import torch

from megatron_af.audio.clap import ClapModel, clip_means, clips_together, part_means
from megatron_af.config import ClapConfig, EncoderConfig, FrontEndConfig, ModelConfig

WORDS = ["<pad>", "</s>", "<unk>", "a", "dog", "barks", "then", "rain", "falls"]
ENCODER = EncoderConfig(
    embed_dim=8, depths=(1, 1), heads=(1, 2), patch_size=16, fusion=False, classes=0, stft_weights=False, drop_path=0
)
FRESH = ClapConfig(text_tower="", text_hidden=16, text_layers=1, text_heads=2, text_max_tokens=12, joint_dim=8)


class WordTokenizer:
    pad_id = 0

    def encode(self, text: str) -> list[int]:
        return [WORDS.index(word) for word in text.split()]

    def __len__(self) -> int:
        return len(WORDS)


def build(clap: ClapConfig = FRESH) -> ClapModel:
    torch.manual_seed(0)
    return ClapModel(ModelConfig(encoder=ENCODER, clap=clap), WordTokenizer())


def test_clip_is_the_mean_of_all_its_windows():
    features = torch.randn(4, 5, 3)
    means = clip_means(features, [1, 3])
    torch.testing.assert_close(means[0], features[0].mean(0))
    torch.testing.assert_close(means[1], features[1:].flatten(0, 1).mean(0))
    audio = build().eval().embed_audio(torch.randn(4, 1001, 64), [1, 3])
    assert audio.shape == (2, 8)
    torch.testing.assert_close(audio.norm(dim=-1), torch.ones(2))


def test_part_of_a_clip_is_the_mean_of_its_time_steps():
    features = torch.randn(4, 64, 3)  # 64 tokens: two halves of the frequency axis, 32 steps of 312.5 ms
    parts = [(0, 0.0, math.inf), (1, 0.0, math.inf), (0, 0.0, 0.625), (1, 10.0, 10.3), (1, 4.0, 4.01)]
    means = part_means(features, [1, 3], parts, FrontEndConfig(), steps=32)
    torch.testing.assert_close(means[:2], clip_means(features, [1, 3]))
    torch.testing.assert_close(means[2], features[0, [0, 1, 32, 33]].mean(0))
    torch.testing.assert_close(means[3], features[2, [0, 32]].mean(0))  # the second window of the second clip
    torch.testing.assert_close(means[4], features[1, [12, 44]].mean(0))  # shorter than a step: the nearest one


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_windows_in_parts_give_the_vectors_and_gradients_of_all_at_once(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    windows, mel = [1, 3, 1, 2], torch.randn(7, 1001, 64) * 9 - 40
    spans = [(3, 12.0, 15.0), (0, 0.0, math.inf), (1, 9.0, 31.0), (3, 0.0, 2.0)]  # of clip 2 nobody says anything
    for parts in (None, spans):
        found = []
        for most in (64, at_once):
            monkeypatch.setattr("megatron_af.audio.clap.WINDOWS_AT_ONCE", most)
            model = build().train()
            audio = model.embed_audio(mel, windows, parts)
            (audio * torch.arange(audio.numel()).view_as(audio)).sum().backward()
            gradients = {n: p.grad for n, p in model.encoder.named_parameters()}
            found.append((audio.detach(), gradients, dict(model.encoder.named_buffers())))
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_clips_that_go_together_are_whole_neighbours():
    assert list(clips_together([1, 3, 1, 2], 4)) == [(0, 2), (2, 4)]
    assert list(clips_together([9, 1, 1, 1], 2)) == [(0, 1), (1, 3), (3, 4)]  # one that is longer goes alone


def test_every_parameter_gets_a_gradient():
    model = build(ClapConfig(**{**vars(FRESH), "learn_temperature": True, "text_recompute": True})).train()
    audio = model.embed_audio(torch.randn(2, 1001, 64), [1, 1])
    text = model.embed_text(*model.clap.text.tokenize(["a dog barks", "rain falls"]))
    (model.scale * (audio @ text.T)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_temperature_is_fixed_or_learnt():
    fixed = build()
    assert fixed.scale.item() == pytest.approx(1 / 0.07)
    assert "clap.log_scale" not in dict(fixed.named_parameters())
    assert "clap.log_scale" in fixed.state_dict()
    learnt = build(ClapConfig(**{**vars(FRESH), "learn_temperature": True}))
    log_scale = dict(learnt.named_parameters())["clap.log_scale"]
    assert log_scale.highest == pytest.approx(math.log(100.0))
    with torch.no_grad():
        log_scale.fill_(math.log(1000.0))
    learnt.scale.backward()
    assert log_scale.grad is not None and log_scale.grad > 0, "beyond its limit it has no way back"
