"""Equality with the published code, from fixtures of its outputs (tests/fixtures/parity/README.md).

    .venv/bin/pytest tests/test_parity.py                          # the fixtures of the repository
    .venv/bin/pytest tests/test_parity.py --fixture FILE.npz       # any others of that format

Kinds: mel front end and HTS-AT encoder; the same of ClapCap, with its one vector; Audio Flamingo 1 and 2 from encoder
features on.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dali_pipes.mel import MelPipeline, Pcm
from megatron_af.audio.htsat import HTSAT
from megatron_af.audio.joint_rows import joint_keys
from megatron_af.config import (
    EncoderConfig,
    FrontEndConfig,
)
from megatron_af.config.loading import CONFIGS, load_config
from megatron_af.convert.encoders import EncoderFile
from megatron_af.convert.released import load_released, released_tensors
from megatron_af.data.batch import IGNORED, AudioKeys, TextRows
from megatron_af.model import AudioFront, build
from megatron_af.parallel import groups
from megatron_af.parallel.device import current_device
from megatron_af.parallel.global_state import gather_global
from tests.audio.mel_reference import log_mel
from tests.distributed import run_distributed
from tests.parity import FOLDER, Fixture
from tests.parity_config import fixture_config


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = [Path(path) for path in metafunc.config.getoption("--fixture")]
    paths = given or sorted(FOLDER.glob("*.npz"))
    kind = metafunc.function.__name__.removeprefix("test_")
    chosen = [fixture for fixture in map(Fixture.load, paths) if fixture.kind == kind]
    metafunc.parametrize("fixture", chosen, ids=[fixture.name for fixture in chosen])


def leave_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 279 million numbers that are overwritten at once."""
    for name in ("trunc_normal_", "kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.mark.slow
def test_htsat(fixture: Fixture, monkeypatch: pytest.MonkeyPatch):
    leave_as_it_is(monkeypatch)
    weights = fixture.weights()
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    tables = [name for name in weights if name.endswith("relative_position_bias_table")]
    stages = sorted({name.split(".")[1] for name in tables})
    config = EncoderConfig(
        embed_dim=width,
        patch_size=patch,
        depths=tuple(sum(name.startswith(f"layers.{i}.") for name in tables) for i in stages),
        heads=tuple(weights[f"layers.{i}.blocks.0.attn.relative_position_bias_table"].shape[1] for i in stages),
        fusion="patch_embed.mel_conv2d.weight" in weights,
        classes=len(weights.get("head.bias", ())),
    )
    front_end = FrontEndConfig()
    encoder = HTSAT(front_end, config).eval()
    assert sum(p.numel() for p in encoder.parameters()) == fixture.info["n_params"]
    missing, unexpected = encoder.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert {name.split(".")[0] for name in missing} <= {"spectrogram_extractor", "logmel_extractor"}

    mel = log_mel(fixture.arrays["waveform"], front_end)
    torch.testing.assert_close(mel, fixture.arrays["mel"], atol=0.02, rtol=0)
    expected = fixture.arrays["features"]
    with torch.no_grad():
        from_mel, from_waveform = encoder(fixture.arrays["mel"]), encoder(mel)
    largest = expected.abs().max()
    assert (from_mel - expected).abs().max() <= 1e-5 * largest
    assert (from_waveform - expected).abs().max() <= 1e-3 * largest


@pytest.mark.slow
def test_clapcap(fixture: Fixture, monkeypatch: pytest.MonkeyPatch):
    """From the waveform to one vector, by the section that Audio Flamingo 1's configuration includes."""
    leave_as_it_is(monkeypatch)
    model = load_config(CONFIGS / "model/clapcap.yaml", ["name=parity"]).model
    encoder = HTSAT(model.front_end, model.encoder).eval()
    EncoderFile(fixture.weights()).load(encoder)
    assert sum(p.numel() for p in encoder.parameters()) == fixture.info["n_params"]

    wave_WT, expected = fixture.arrays["waveform"], fixture.arrays["vector"]
    clips = [Pcm(wave_T.numpy()) for wave_T in wave_WT]
    mel = MelPipeline(model.front_end, device="cpu", device_id=None, threads=1).run(clips, [1] * len(clips))
    # Audio Flamingo 1 hands ClapCap clips whose peak is 1; the fixture's waveform is heard as loud as it is.
    louder_W = -20 * wave_WT.abs().amax(1).log10()
    mel = (mel - louder_W[:, None, None]).clamp(min=-100)
    with torch.no_grad():
        from_mel, from_waveform = encoder(fixture.arrays["mel"]), encoder(mel)
    torch.testing.assert_close(from_mel[:, 0], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(from_waveform[:, 0], expected, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_af2(fixture: Fixture):
    run_distributed(_whole, 1, fixture)


@pytest.mark.slow
def test_af1(fixture: Fixture):
    """In the mode in which its transformation layers see all audios of a row, and their padding."""
    run_distributed(_whole, 1, fixture)


def _whole(rank: int, world_size: int, fixture: Fixture) -> None:
    config, vocabulary = fixture_config(fixture)
    arrays, weights = fixture.arrays, fixture.weights()
    groups.initialize(config.parallel, config.seed)
    model = build(config, vocabulary, current_device())
    load_released(model, weights.__getitem__, config.model, vocabulary, encoder=False)

    keys, tokens_BTD = _keys(model.front, fixture)
    torch.testing.assert_close(tokens_BTD, arrays["audio_tokens"], atol=1e-4, rtol=0)
    rows = _rows(fixture)
    (lm,) = model.chunks
    real_BS = arrays["attention_mask"].bool()
    with torch.no_grad():
        logits_BSV = lm.logits(rows, keys, model.front.added_rows)
    torch.testing.assert_close(logits_BSV[real_BS], arrays["logits"][real_BS], atol=1e-4, rtol=0)

    loss = lm(rows, keys, model.front.added_rows).mean()
    assert loss.item() == pytest.approx(float(arrays["loss"]), abs=1e-5)
    loss.backward()
    gradients = released_tensors(gather_global(model.chunks, model.front, "grad"), config.model)
    assert gradients.keys() == fixture.info["grad_norms"].keys()
    # A key's bias shifts all scores of a query alike: its gradient is rounding noise around zero.
    wrong = {
        name: (float(gradients[name].norm()), norm)
        for name, norm in fixture.info["grad_norms"].items()
        if float(gradients[name].norm()) != pytest.approx(norm, rel=1e-4, abs=1e-6)
    }
    assert wrong == {}
    for name, gradient in fixture.info["gate_grads"].items():
        assert gradients[name].item() == pytest.approx(gradient, rel=1e-4)


def _keys(front: AudioFront, fixture: Fixture) -> tuple[AudioKeys, Tensor]:
    """What the rows hear, and all tokens behind the transformation layers, those of padding included (B, T, D)."""
    heard_BW = fixture.arrays["window_mask"].bool()
    if fixture.kind == "af1":
        features_BWLD = fixture.arrays["features"][:, :, None]
        audio_W = torch.arange(heard_BW.shape[1]) // fixture.info["config"]["windows_per_audio"]
        audio_of_BW = torch.where(heard_BW, audio_W, -1).int()
        keys = joint_keys(front.transform, zip(features_BWLD, audio_of_BW, strict=True))
        return keys, front.transform(features_BWLD.flatten(1, 2), None)
    features_BWLD = fixture.arrays["features"]
    heard_BT = heard_BW.repeat_interleave(features_BWLD.shape[2], 1)
    tokens_BTD = front.transform(features_BWLD.flatten(1, 2), heard_BT)
    audio_of_BT = torch.where(heard_BT, 0, -1).int()
    return AudioKeys(tokens_LBD=tokens_BTD.transpose(0, 1), audio_of_BL=audio_of_BT), tokens_BTD


def _rows(fixture: Fixture) -> TextRows:
    """The fixture's rows, their labels not yet shifted: what comes before an audio sees the first one."""
    arrays = fixture.arrays
    ids_BS, labels_BS = arrays["input_ids"], arrays["labels"]
    shifted_BS = torch.cat([labels_BS[:, 1:], torch.full_like(labels_BS[:, :1], IGNORED)], 1)
    heard_BS = (ids_BS == fixture.info["config"]["media_id"]).cumsum(1)
    return TextRows(
        ids_BS=ids_BS,
        labels_BS=shifted_BS,
        segment_BS=torch.where(arrays["attention_mask"].bool(), 0, -1).int(),
        first_audio_BS=torch.zeros_like(ids_BS, dtype=torch.int32),
        last_audio_BS=(heard_BS - 1).clamp(min=0).int(),
        dataset_BS=torch.zeros_like(ids_BS, dtype=torch.int32),
        clips=tuple((row,) for row in range(len(ids_BS))),
    )
