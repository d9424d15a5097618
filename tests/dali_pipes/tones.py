"""Tones in files."""

import numpy as np

RATE = 22_050


def tone(seconds: float, rate: int = RATE, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)
