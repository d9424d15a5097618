"""What is left out for what it sounds like, and how samples are kept."""

import numpy as np
import pytest

from dali_pipes.waves import AudioError
from megatron_af.prepare.signals import check_signal, kept_pcm, peak_int16, recorded_int16


def test_peak_normalisation_rounds_towards_zero() -> None:
    assert peak_int16(np.array([0.5, -0.25, 0.1], np.float32)).tolist() == [32_767, -16_383, 6_553]


@pytest.mark.parametrize(
    ("wave", "reason"),
    [([], "empty"), ([0.1] * 99, "empty"), ([0.3] * 200, "silent"), ([0.0, 1e-4] * 100, "silent")],
)
def test_a_signal_with_nothing_in_it_has_its_reason(wave: list[float], reason: str) -> None:
    with pytest.raises(AudioError) as raised:
        check_signal(np.array(wave, np.float32), 10_000)
    assert raised.value.reason == reason


@pytest.mark.parametrize(("hz", "heard"), [(15_000, False), (3_000, True)])
def test_what_is_too_high_for_the_model_is_silent_not_noise(hz: int, heard: bool) -> None:
    time = np.arange(44_100) / 44_100
    wave = (0.5 * np.sin(2 * np.pi * hz * time) * np.hanning(44_100)).astype(np.float32)
    if heard:
        assert np.abs(kept_pcm(wave, 44_100, 16_000)).max() == 32_767
        return
    with pytest.raises(AudioError, match=r"silent below 8,000 Hz") as raised:
        kept_pcm(wave, 44_100, 16_000)
    assert raised.value.reason == "silent"


def test_samples_that_keep_their_level_are_those_that_are_decoded() -> None:
    wave = np.array([0.5, -0.25, 0.01, 1.5, -1.5], np.float32)
    assert recorded_int16(wave).tolist() == [16_384, -8_192, 328, 32_767, -32_767]
