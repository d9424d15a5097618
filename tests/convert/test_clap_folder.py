"""LAION-CLAP's folders: the embeddings are transformers' own, and what does not fit is named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import ClapFeatureExtractor

from dali_pipes import mel
from dali_pipes.mel import MelPipeline, Pcm
from megatron_af.audio.encoder import encoder_of
from megatron_af.convert.clap_folder import ClapFolder
from megatron_af.foreign import ForeignError
from tests.convert.clap_waves import waves
from tests.convert.toy_clap import RATE, SECONDS, write_clap

MANY = 30
"""Windows that are heard at most."""


@pytest.mark.parametrize("made_by", ["dali", "torch"])
def test_a_fused_encoder_embeds_as_transformers_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_by: str
) -> None:
    monkeypatch.setattr(mel, "dali_problem", lambda: "" if made_by == "dali" else "not installed")
    theirs = write_clap(tmp_path)
    folder = ClapFolder(tmp_path)
    front = folder.model.front_end
    assert (front.long_clips, front.short_clips, front.mel_scale) == ("views", "repeat_whole", "htk")
    ours = encoder_of(folder.model.encoder).build(front).eval()
    report = folder.load(ours)
    sound = waves()
    monkeypatch.setattr(np.random, "choice", lambda third: third[len(third) // 2])  # where ours begins, not drawn
    inputs = ClapFeatureExtractor.from_pretrained(tmp_path)(sound, sampling_rate=RATE, return_tensors="pt")
    assert inputs["is_longer"].flatten().tolist() == [False] * 4 + [True] * 4
    pipeline = MelPipeline(front, device="cpu", device_id=None, threads=1)
    mel_WVFM = pipeline.run([Pcm(wave) for wave in sound], [front.covering(len(wave), MANY) for wave in sound])
    assert mel_WVFM.shape == (len(sound), 4, SECONDS * 100 + 1, 64)
    with torch.no_grad():
        expected = theirs.get_audio_features(**inputs).pooler_output
        got = F.normalize(ours(mel_WVFM)[:, 0], dim=-1)
        whole_alone = torch.cat([mel_WVFM[:, :1], torch.full_like(mel_WVFM[:, 1:], torch.nan)], 1)
        moved = (F.normalize(ours(whole_alone)[:, 0], dim=-1) - got).abs().amax(1)
    assert (got - expected).abs().max() < 1e-4
    assert (moved[:4] == 0).all() and (moved[4:] > 2e-3).all(), "the parts are heard of longer clips alone"
    every = set(theirs.state_dict())
    assert set(report.used) | set(report.ignored) == every and not report.unknown and not report.missing
    audio = {name for name in every if name.startswith(("audio_", "fusion")) and "relative_position_index" not in name}
    assert {name for name in audio if "num_batches" not in name} <= set(report.used)


def test_an_unfused_encoder_hears_a_window_as_transformers_does(tmp_path: Path) -> None:
    theirs = write_clap(tmp_path, fused=False)
    folder = ClapFolder(tmp_path)
    front = folder.model.front_end
    assert (front.long_clips, front.mel_scale, folder.model.encoder.fusion) == ("windows", "slaney", False)
    ours = encoder_of(folder.model.encoder).build(front).eval()
    folder.load(ours)
    sound = waves()[:3]
    inputs = ClapFeatureExtractor.from_pretrained(tmp_path)(sound, sampling_rate=RATE, return_tensors="pt")
    mel_WFM = MelPipeline(front, device="cpu", device_id=None, threads=1).run([Pcm(wave) for wave in sound], [1] * 3)
    with torch.no_grad():
        expected = theirs.get_audio_features(**inputs).pooler_output
        assert (F.normalize(ours(mel_WFM)[:, 0], dim=-1) - expected).abs().max() < 1e-4


def test_fused_and_not_fused_are_not_taken_for_each_other(tmp_path: Path) -> None:
    for fused, theirs, ours in ((True, "views", "windows"), (False, "windows", "views")):
        write_clap(tmp_path / theirs, fused=fused)
        folder = ClapFolder(tmp_path / theirs)
        folder.check(folder.model)
        other = replace(folder.model, front_end=replace(folder.model.front_end, long_clips=ours))
        with pytest.raises(ForeignError, match=rf"long_clips = {ours}: .*; set it to {theirs}$"):
            folder.check(other)


def test_folders_that_hold_something_else_are_named(tmp_path: Path) -> None:
    write_clap(tmp_path / "whole")

    def broken(name: str, change: dict[str, object]) -> Path:
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder)
        content = json.loads((folder / name).read_text())
        inner = content["audio_config"] if name == "config.json" and "model_type" not in change else content
        inner |= change
        (folder / name).write_text(json.dumps(content))
        return folder

    for name, change, message in (
        ("config.json", {"model_type": "clip"}, "expected a Hugging Face folder with config.json of model_type 'clap'"),
        ("config.json", {"hidden_act": "relu"}, "audio_config.hidden_act = relu; only gelu is computed here"),
        ("config.json", {"patch_stride": [8, 8]}, "only patches that do not overlap"),
        ("config.json", {"enable_fusion": False}, "enable_fusion = False does not go with truncation = fusion"),
        ("preprocessor_config.json", {"padding": "wrap"}, "padding = wrap"),
        ("config.json", {"patch_embeds_hidden_size": [16, 2]}, "state values that make no encoder|is no CLAP's"),
        ("config.json", {"patch_embeds_hidden_size": -1}, "built here: encoder.embed_dim = -1: must be"),
        ("preprocessor_config.json", {"max_length_s": 60}, "cannot be built here: model.front_end.window_seconds"),
        ("preprocessor_config.json", {"feature_size": 614_000}, "expected feature_size up to 512, got 614000"),
        ("preprocessor_config.json", {"hop_length": {"a": 1}}, "state values that make no encoder"),
        ("preprocessor_config.json", {"hop_length": 0}, "built here: front_end.hop_samples = 0: must be at least 1"),
        ("preprocessor_config.json", {"sampling_rate": "a"}, "expected sampling_rate up to 768,000, got 'a'"),
    ):  # fmt: skip
        with pytest.raises(ForeignError, match=message):
            ClapFolder(broken(name, change))
    (folder := broken("config.json", {})).joinpath("preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="expected preprocessor_config"):
        ClapFolder(folder)


def test_what_transformers_thinks_of_filters_is_not_printed(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    write_clap(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fft_window_size": 128}))
    recwarn.clear()
    assert ClapFolder(tmp_path).model.front_end.fft_size == 128
    assert not [str(one.message) for one in recwarn]
