"""What a recording must be to be learnt from, and the form in which it is kept.

    check_signal(wave_T, 44_100)        # AudioError: nothing is in it
    pcm_T = peak_int16(wave_T)
"""

import numpy as np
from numpy.typing import NDArray

from dali_pipes.waves import AudioError

SHORTEST_SECONDS = 0.01
SILENT_SPAN = 2e-4
"""A signal that moves less than this over the whole clip (-80 dB of full scale) is silent."""


def check_signal(wave_T: NDArray[np.float32], sample_rate: int) -> None:
    """Raises `AudioError` for a clip with nothing in it."""
    if len(wave_T) < SHORTEST_SECONDS * sample_rate:
        raise AudioError(f"has only {len(wave_T)} samples", "empty")
    if float(np.ptp(wave_T)) < SILENT_SPAN:
        raise AudioError("is silent throughout", "silent")


def peak_int16(wave_T: NDArray[np.float32]) -> NDArray[np.int16]:
    """Scales the largest magnitude to full scale and rounds towards zero, as the reference does."""
    return (wave_T / np.abs(wave_T).max() * np.float32(32_767)).astype(np.int16)
