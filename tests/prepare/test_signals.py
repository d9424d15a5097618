"""What is left out for what it sounds like, and how samples are kept."""

import numpy as np
import pytest

from dali_pipes.waves import AudioError
from megatron_af.prepare.signals import check_signal, peak_int16


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
