"""The exported mel is DALI's, within the bound that DALI's own test has."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dali_pipes.mel import MelPipeline, Pcm
from dali_pipes.waves import read_wave
from megatron_af.config import FrontEndConfig
from megatron_af.convert.huggingface.feature_extraction_audio_flamingo import AudioFlamingoFeatureExtractor
from megatron_af.release.export import FRONT_END
from tests.dali_pipes.mels import AF1, AF2, ODD, broadband
from tests.data.toy import write_tone

CLAPCAP = FrontEndConfig(
    sample_rate=44_100, window_seconds=7.0, hop_samples=320, mel_scale="slaney", mel_sample_rate=32_000
)


def extractor_of(front_end: FrontEndConfig, max_windows: int = 3) -> AudioFlamingoFeatureExtractor:
    settings: dict[str, Any] = {name: getattr(front_end, name) for name in FRONT_END}
    return AudioFlamingoFeatureExtractor(sampling_rate=front_end.sample_rate, max_windows=max_windows, **settings)


def dali(front_end: FrontEndConfig) -> MelPipeline:
    return MelPipeline(front_end, device="cpu", device_id=None, threads=1)


@pytest.mark.parametrize(
    ("front_end", "tolerance"),
    [(AF2, 1.5e-3), (AF1, 6e-3), (ODD, 1.5e-3), (CLAPCAP, 6e-3)],
    ids=["af2", "af1", "odd-overlap", "clapcap"],
)
@pytest.mark.parametrize("seconds", [0.5, 8.5, 33.0])
def test_windows_are_dalis(front_end: FrontEndConfig, tolerance: float, seconds: float) -> None:
    wave = broadband(seconds, front_end.sample_rate, seed=3)
    windows = front_end.num_windows(len(wave), 3)
    expected = dali(front_end).run([Pcm(wave)], [windows])
    found = extractor_of(front_end).windows(wave, front_end.sample_rate)
    assert found.shape == expected.shape == (windows, front_end.window_frames, 64)
    loud = expected > -70  # the zero-padded tail lies at the floor
    assert (found - expected).abs()[loud].max() < tolerance
    assert (found - expected).abs().max() < 0.1


@pytest.mark.parametrize("rate", [16_000, 44_100, 22_050])
def test_a_file_is_heard_as_the_loader_hears_it(tmp_path: Path, rate: int) -> None:
    write_tone(tmp_path / "tone.wav", 12.3, seed=4, rate=rate)
    wave = read_wave(tmp_path / "tone.wav", start=0.0, duration=12.3, sample_rate=16_000)
    found = extractor_of(AF2).windows(tmp_path / "tone.wav")
    expected = dali(AF2).run([Pcm(wave)], [2])
    error = (found - expected).abs()[expected > -70]
    assert (error > 1.5e-3).float().mean() < 1e-3 and error.max() < 0.1


def test_silence_stays_silent_and_what_is_no_recording_is_refused() -> None:
    extractor = extractor_of(AF2)
    assert torch.equal(extractor.windows(np.zeros(100), 16_000), torch.full((1, 1001, 64), -100.0))
    too_high = np.sin(np.arange(44_100) * 2.2).astype(np.float32) * np.hanning(44_100).astype(np.float32)  # 15.4 kHz
    assert extractor.windows(too_high, 44_100).max() == -100
    with pytest.raises(ValueError, match="sampling_rate: expected the waveform's rate in Hz, got none"):
        extractor.windows(np.zeros(100))
    for wave in (np.zeros((2, 100)), np.zeros(0)):
        with pytest.raises(ValueError, match="expected a file or a mono waveform"):
            extractor.windows(wave, 16_000)


def test_windows_of_several_recordings_know_their_own() -> None:
    heard = extractor_of(AF2)([np.zeros(100), np.zeros(170_000), np.zeros(900_000)], sampling_rate=16_000)
    assert heard["window_audio"].tolist() == [[0, 1, 1, 2, 2, 2]]
    assert heard["input_features"].shape == (1, 6, 1001, 64)
