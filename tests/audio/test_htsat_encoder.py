"""HTS-AT's numbers follow from its settings, and what does not fit its image is told by key."""

from dataclasses import replace

import pytest

from megatron_af.audio.htsat_encoder import HTSATEncoder
from megatron_af.config import EncoderConfig, FrontEndConfig

DEMO = EncoderConfig(embed_dim=96, depths=(1, 3), heads=(4, 8), patch_size=16)


@pytest.mark.parametrize(
    ("config", "tokens", "dim", "steps"),
    [
        (EncoderConfig(), 64, 2048, 32),
        (DEMO, 64, 192, 32),
        (replace(DEMO, depths=(1,), heads=(4,)), 256, 96, 64),
        (EncoderConfig(vector="residual", vector_dim=1024), 1, 1024, 1),
    ],
    ids=["AF-CLAP", "demo", "one stage", "ClapCap"],
)
def test_its_sizes(config: EncoderConfig, tokens: int, dim: int, steps: int) -> None:
    encoder = HTSATEncoder(config)
    assert (encoder.tokens_per_window, encoder.feature_dim, encoder.time_steps) == (tokens, dim, steps)


@pytest.mark.parametrize(
    ("config", "front_end", "message"),
    [
        (replace(DEMO, depths=()), FrontEndConfig(), "model.encoder.depths is empty"),
        (replace(DEMO, patch_size=24), FrontEndConfig(), "model.encoder.patch_size = 24 does not divide the side"),
        (replace(DEMO, patch_size=64), FrontEndConfig(), "leaves a grid of 2 rows for the 4 folds"),
        (replace(DEMO, window_size=3), FrontEndConfig(), "model.encoder.window_size = 3 does not divide the 16 rows"),
        (DEMO, FrontEndConfig(mel_bins=80), "model.front_end.mel_bins = 80"),
        (replace(DEMO, fusion=False), FrontEndConfig(long_clips="views"), "encoder.fusion is false; set it to true"),
        (DEMO, FrontEndConfig(window_seconds=11.0), "makes 1101 mel frames; HTS-AT takes 1024"),
    ],
)
def test_what_does_not_fit_is_told(config: EncoderConfig, front_end: FrontEndConfig, message: str) -> None:
    (problem,) = HTSATEncoder(config).problems(front_end)
    assert message in problem


def test_what_is_shipped_fits() -> None:
    assert not list(HTSATEncoder(EncoderConfig()).problems(FrontEndConfig()))
