"""What mel is made of: clips as they come from a recording or a shard.

T samples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pcm:
    """A decoded clip: float32 [T], mono, at the model's rate."""

    wave_T: NDArray[np.float32]


@dataclass(frozen=True)
class Flac:
    """A prepared clip: a mono FLAC stream at the model's rate, decoded where its mel is made."""

    data: bytes


type Sound = Pcm | Flac

INT16_MAX = 32_767.0
SILENCE = 1e-7
"""Peaks below this are silence, which stays silent instead of becoming NaN or full-scale noise."""
FLOOR_DB = -100.0
"""Of a bin without energy."""
