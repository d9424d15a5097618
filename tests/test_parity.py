"""Equality with the published code, from fixtures of its outputs (tests/fixtures/parity/README.md).

    .venv/bin/pytest tests/test_parity.py                          # the fixtures of the repository
    .venv/bin/pytest tests/test_parity.py --fixture FILE.npz       # any others of that format

Kinds: mel front end and HTS-AT encoder; Audio Flamingo 2 from encoder features on; of Audio Flamingo 1 the
transformation layers.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_af.audio.htsat import HTSAT
from megatron_af.audio.transform import TransformationLayers
from megatron_af.config import (
    Config,
    CrossAttentionConfig,
    EncoderConfig,
    FrontEndConfig,
    LMConfig,
    ModelConfig,
    TransformConfig,
)
from megatron_af.convert.released import load_released, released_names, released_tensors
from megatron_af.data.batch import IGNORED, AudioKeys, TextRows
from megatron_af.model import Vocabulary, build
from megatron_af.parallel import groups
from megatron_af.parallel.device import current_device
from megatron_af.parallel.global_state import gather_global
from tests.audio.mel_reference import log_mel
from tests.distributed import run_distributed
from tests.parity import FOLDER, Fixture


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = [Path(path) for path in metafunc.config.getoption("--fixture")]
    paths = given or sorted(FOLDER.glob("*.npz"))
    kind = metafunc.function.__name__.removeprefix("test_")
    chosen = [fixture for fixture in map(Fixture.load, paths) if fixture.kind == kind]
    metafunc.parametrize("fixture", chosen, ids=[fixture.name for fixture in chosen])


@pytest.mark.slow
def test_htsat(fixture: Fixture, monkeypatch: pytest.MonkeyPatch):
    for name in ("trunc_normal_", "kaiming_uniform_", "uniform_"):  # 279 million numbers that are overwritten at once
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)
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
def test_af2(fixture: Fixture):
    run_distributed(_af2, 1, fixture)


def _af2(rank: int, world_size: int, fixture: Fixture) -> None:
    config, vocabulary = _af2_config(fixture)
    arrays, weights = fixture.arrays, fixture.weights()
    groups.initialize(config.parallel, config.seed)
    model = build(config, vocabulary, current_device())
    load_released(model, weights.__getitem__, config.model, vocabulary, encoder=False)

    valid_BL = arrays["window_mask"].bool().repeat_interleave(arrays["features"].shape[2], 1)
    tokens_BLD = model.front.transform(arrays["features"].flatten(1, 2), valid_BL)
    torch.testing.assert_close(tokens_BLD, arrays["audio_tokens"], atol=1e-4, rtol=0)

    keys = AudioKeys(tokens_LBD=tokens_BLD.transpose(0, 1), audio_of_BL=torch.where(valid_BL, 0, -1).int())
    rows = _rows(arrays)
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


def _af2_config(fixture: Fixture) -> tuple[Config, Vocabulary]:
    info, first_added = fixture.info["config"], fixture.info["config"]["media_id"]
    added = info["vocab"] - first_added
    width = info["audio_dim"]
    model = ModelConfig(
        # not under test, as small as its output width allows
        encoder=EncoderConfig(
            embed_dim=width, depths=(1,), heads=(1,), patch_size=32, fusion=False, classes=0, stft_weights=False
        ),
        transform=TransformConfig(layers=info["transform_layers"], ffn=info["transform_ffn"]),
        lm=LMConfig(
            hidden=info["hidden"],
            layers=info["layers"],
            heads=info["heads"],
            kv_heads=info["kv_heads"],
            ffn=info["ffn"],
            vocab=first_added,
            rope_base=info["rope_theta"],
            norm_eps=info["rms_eps"],
            tied="lang_encoder.lm_head.weight" not in fixture.info["parameters"],
        ),
        cross_attention=CrossAttentionConfig(
            interval=info["xattn_every"], heads=info["xattn_heads"], head_dim=info["xattn_head_dim"]
        ),
    )
    return Config(name="parity", precision="fp32", model=model), Vocabulary(first_added_id=first_added, num_added=added)


def _rows(arrays: dict[str, Tensor]) -> TextRows:
    """The fixture's rows: labels not yet shifted, every position sees the row's one audio."""
    ids_BS, labels_BS = arrays["input_ids"], arrays["labels"]
    shifted_BS = torch.cat([labels_BS[:, 1:], torch.full_like(labels_BS[:, :1], IGNORED)], 1)
    none_BS = torch.zeros_like(ids_BS, dtype=torch.int32)
    return TextRows(
        ids_BS=ids_BS,
        labels_BS=shifted_BS,
        segment_BS=torch.where(arrays["attention_mask"].bool(), 0, -1).int(),
        first_audio_BS=none_BS,
        last_audio_BS=none_BS,
        dataset_BS=none_BS,
        clips=tuple((row,) for row in range(len(ids_BS))),
    )


def test_af1(fixture: Fixture):
    """The reference's transformation layers see all audios of a row and their padding."""
    info, weights = fixture.info["config"], fixture.weights()
    width = info["audio_dim"]
    layers = TransformationLayers(
        width,
        TransformConfig(
            layers=info["transform_layers"],
            heads=info["transform_heads"],
            ffn=info["transform_ffn"],
            positions="sinusoidal",
        ),
    )
    prefix = "audio_transformer."
    layers.load_state_dict(
        {
            name: weights[prefix + released_names(f"transform.{name}")[0].removeprefix("audio_transformer_clap.")]
            for name in layers.state_dict()
        }
    )
    tokens = layers(fixture.arrays["features"], None)
    torch.testing.assert_close(tokens, fixture.arrays["audio_tokens"], atol=1e-4, rtol=0)
