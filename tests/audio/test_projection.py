"""Encoders that give one vector per window, as ClapCap and LAION-CLAP do: the shipped settings, and what follows."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dali_pipes.mel import MelPipeline, Pcm
from megatron_af.audio.clap import ClapModel
from megatron_af.audio.htsat import HTSAT
from megatron_af.audio.projection import ResidualProjection, projection
from megatron_af.config import ClapConfig, EncoderConfig, FrontEndConfig, ModelConfig, TransformConfig
from megatron_af.config.loading import load_config
from megatron_af.runs.check import check
from tests import tiny
from tests.dali_pipes.mels import broadband
from tests.dali_pipes.reference import reference_mel
from tests.text.toy_tokenizer import toy_tokenizer

SECTIONS = Path(__file__).parents[2] / "configs" / "model"
KINDS = ("mlp", "residual")
CLAP = ClapConfig(text_tower="", text_hidden=16, text_layers=1, text_heads=2, joint_dim=8)


def shipped(folder: Path, name: str) -> ModelConfig:
    top = folder / "top.yaml"
    top.write_text(f"include: [{SECTIONS / name}.yaml]\nname: top\n")
    return load_config(top).model


def small(vector: str) -> EncoderConfig:
    return EncoderConfig(
        embed_dim=8, depths=(1, 1), heads=(1, 2), patch_size=16, fusion=False, classes=0, stft_weights=False,
        drop_path=0, vector=vector, vector_dim=8,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "frames", "dim"), [("clapcap", 965, 1024), ("laion_clap", 1001, 512)])
def test_shipped_sections_say_what_the_public_code_does(tmp_path: Path, name: str, frames: int, dim: int):
    model = shipped(tmp_path, name)
    front = model.front_end
    assert front.window_frames == frames
    with torch.device("meta"):
        encoder = HTSAT(front, model.encoder)
        assert encoder(torch.empty(2, frames, 64)).shape == (2, 1, dim)
    assert (model.encoder.tokens_per_window, model.encoder.feature_dim) == (1, dim)
    assert front.num_windows(round(33.25 * front.sample_rate), 16) == (16 if name == "clapcap" else 4)


@pytest.mark.parametrize("name", ["clapcap", "laion_clap"])
def test_their_mel_is_the_references(tmp_path: Path, name: str):
    front = shipped(tmp_path, name).front_end
    wave = broadband(9.0, front.sample_rate)
    windows = front.num_windows(len(wave), 3)
    mel = MelPipeline(front, device="cpu", device_id=None, threads=1).run([Pcm(wave)], [windows])
    expected = reference_mel(wave, front, windows)
    heard = expected > -70
    assert (mel - expected).abs()[heard].max() < 0.01
    if name == "clapcap":  # drawn for 44.1 kHz the bands would lie elsewhere, by whole decibels
        right_rate = FrontEndConfig(**{**vars(front), "mel_sample_rate": 0})
        assert (mel - reference_mel(wave, right_rate, windows)).abs()[heard].mean() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_vector_is_the_projected_mean_of_the_tokens(kind: str):
    torch.manual_seed(0)
    encoder = HTSAT(FrontEndConfig(), small(kind)).eval()
    mel = torch.randn(3, 1001, 64) * 10 - 40
    vectors = encoder(mel)
    assert vectors.shape == (3, 1, 8)
    project, encoder.projection = encoder.projection, None
    torch.testing.assert_close(vectors[:, 0], project(encoder(mel).mean(1)))


def test_projections_by_hand():
    x = torch.randn(5, 6)
    mlp = projection("mlp", 6, 4)
    expected = F.linear(F.relu(F.linear(x, mlp[0].weight, mlp[0].bias)), mlp[2].weight, mlp[2].bias)
    torch.testing.assert_close(mlp(x), expected)
    residual = projection("residual", 6, 4)
    assert isinstance(residual, ResidualProjection)
    first = x @ residual.linear1.weight.T
    second = F.gelu(first) @ residual.linear2.weight.T
    torch.testing.assert_close(residual.eval()(x), F.layer_norm(first + second, (4,)))
    assert not torch.equal(residual.train()(x), residual(x))  # dropout, another one each time


@pytest.mark.parametrize("kind", KINDS)
def test_a_clap_of_vectors_trains_whole_and_averages_windows(kind: str):
    torch.manual_seed(0)
    model = ClapModel(ModelConfig(encoder=small(kind), clap=CLAP), toy_tokenizer())
    mel = torch.randn(4, 1001, 64) * 10 - 40
    audio = model.embed_audio(mel, [1, 3])
    text = model.embed_text(*model.clap.text.tokenize(["a dog barks", "rain falls"]))
    (audio @ text.T).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    vectors = model.encoder(mel)[:, 0]
    expected = F.normalize(torch.stack([vectors[0], vectors[1:].mean(0)]), dim=-1)
    torch.testing.assert_close(model.embed_audio(mel, [1, 3]), expected)
    # a part of a clip is heard in the windows whose middle lies in it, or in the nearest one
    parts = model.embed_audio(mel, [1, 3], [(1, 0.0, 10.0), (1, 21.0, 22.0), (1, 0.0, math.inf)])
    torch.testing.assert_close(parts, F.normalize(torch.stack([vectors[1], vectors[3], vectors[1:].mean(0)]), dim=-1))


def test_sizes_that_do_not_fit_name_their_keys():
    config = tiny.config()
    stage = config.curriculum["stage"]
    stage = type(stage)(**{**vars(stage), "objective": "contrastive", "trainable": ("encoder.*", "clap.*")})
    model = ModelConfig(encoder=small("mlp"), clap=CLAP, transform=TransformConfig(heads=2), lm=config.model.lm)
    good = type(config)(**{**vars(config), "model": model, "curriculum": {"stage": stage}})

    def problems(**changes: object) -> str:
        return "\n".join(check(type(good)(**{**vars(good), "model": ModelConfig(**{**vars(model), **changes})}), 1))

    assert "vector_dim" not in problems()
    wide = ClapConfig(**{**vars(CLAP), "joint_dim": 16})
    assert "model.encoder.vector_dim = 8, model.clap.joint_dim = 16" in problems(clap=wide)
    front = FrontEndConfig(mel_sample_rate=12_000)
    assert "6000.0 (half of mel_sample_rate)" in problems(front_end=front)
