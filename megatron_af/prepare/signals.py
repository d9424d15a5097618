"""What a recording must be to be learnt from, and the form in which it is kept.

    pcm_T = kept_pcm(wave_T, 44_100, 16_000)        # AudioError: nothing is in it, or nothing that a model hears
"""

import numpy as np
from numpy.typing import NDArray

from dali_pipes.waves import AudioError, resample

SHORTEST_SECONDS = 0.01
SILENT_SPAN = 2e-4
"""A signal that moves less than this over the whole clip (-80 dB of full scale) is silent."""


def kept_pcm(wave_T: NDArray[np.float32], rate: int, sample_rate: int, level: str = "peak") -> NDArray[np.int16]:
    """A clip at the model's rate, in 16 bits.

    Args:
        level: as a model hears it (``model.front_end.level``): scaled to its ``peak``, or as ``recorded``.

    Raises:
        AudioError: nothing is in it, or only what is too high for the model's rate: scaled up, what the filter leaves
            of that would be noise under the name of a sound.
    """
    check_signal(wave_T, rate)  # before resampling, whose edges would give a constant some life
    heard_T = resample(wave_T, rate, sample_rate)
    if float(np.ptp(heard_T)) < SILENT_SPAN:
        raise AudioError(f"is silent below {sample_rate // 2:,} Hz, which is all that the model hears of it", "silent")
    return recorded_int16(heard_T) if level == "recorded" else peak_int16(heard_T)


def check_signal(wave_T: NDArray[np.float32], sample_rate: int) -> None:
    """Raises `AudioError` for a clip with nothing in it."""
    if len(wave_T) < SHORTEST_SECONDS * sample_rate:
        raise AudioError(f"has only {len(wave_T)} samples", "empty")
    if float(np.ptp(wave_T)) < SILENT_SPAN:
        raise AudioError("is silent throughout", "silent")


def peak_int16(wave_T: NDArray[np.float32]) -> NDArray[np.int16]:
    """Scales the largest magnitude to full scale and rounds towards zero, as the reference does."""
    return (wave_T / np.abs(wave_T).max() * np.float32(32_767)).astype(np.int16)


def recorded_int16(wave_T: NDArray[np.float32]) -> NDArray[np.int16]:
    """The steps that a decoder makes the same samples of; what is beyond full scale is cut, as where mel is made."""
    return (wave_T * np.float32(32_768)).clip(-32_767, 32_767).round().astype(np.int16)
