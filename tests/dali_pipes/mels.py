"""Signals, front ends and graphs whose mel is compared."""

from collections.abc import Callable

import numpy as np
import pytest

from dali_pipes import mel
from dali_pipes.mel import MelPipeline
from megatron_af.config import FrontEndConfig

type Pipelines = Callable[[FrontEndConfig], MelPipeline]
AF2 = FrontEndConfig()
AF1 = FrontEndConfig(sample_rate=44_100, window_seconds=7.0, overlap_seconds=5.25, hop_samples=320, mel_scale="slaney")
ODD = FrontEndConfig(window_seconds=1.0, overlap_seconds=0.3)


def broadband(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """Noise whose level moves, as loud in every band."""
    rng = np.random.default_rng(seed)
    level = 0.05 + 0.2 * np.abs(np.sin(np.arange(round(seconds * rate)) / rate * 2.1 + seed))
    return (rng.standard_normal(len(level)) * level).astype(np.float32)


@pytest.fixture(params=["", "ImportError: DALI is not installed"], ids=["dali", "torch"])
def pipeline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Pipelines:
    """Both ways of making mel."""
    monkeypatch.setattr(mel, "dali_problem", lambda: request.param)
    return lambda front_end: MelPipeline(front_end, device="cpu", device_id=None, threads=1)
