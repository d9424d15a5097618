"""Recordings for published CLAPs."""

import numpy as np
from numpy.typing import NDArray

from tests.convert.toy_clap import RATE, SECONDS
from tests.dali_pipes.mels import broadband


def waves() -> list[NDArray[np.float32]]:
    """Shorter than a window, a window, hardly longer, longer; in steps of 16 bits, as recordings are. Below the noise
    a tone climbs, so that every part of a clip sounds otherwise."""
    seconds = (0.7, 1.3, SECONDS, SECONDS + 0.005, SECONDS + 0.01, SECONDS + 0.02, 4.13, 9.6)
    drawn = [0.02 * broadband(s, RATE, number) + 0.5 * _climbing(s) for number, s in enumerate(seconds)]
    return [((wave * 32767).astype(np.int16) / 32767).astype(np.float32) for wave in drawn]


def _climbing(seconds: float) -> NDArray[np.float32]:
    time_T = np.arange(round(seconds * RATE)) / RATE
    return np.sin(2 * np.pi * (100 * time_T + 3000 * time_T**2 / seconds)).astype(np.float32)
