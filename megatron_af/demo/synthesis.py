"""Synthesised sources for the demo where no sound packages can be had.

    for kind, waveform in synthesise(16_000): ...
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
TAKES = 16


def synthesise(sample_rate: int, seed: int = 0) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """``TAKES`` takes of each of 14 kinds, every take with its own pitch, timbre and length (0.25 to 3 s)."""
    for kind, make in sorted(VOICES.items()):
        for take in range(TAKES):
            rng = np.random.default_rng([seed, take, *kind.encode()])
            t = np.arange(round(sample_rate * (rng.uniform(0.25, 0.7) if take % 2 else rng.uniform(1.7, 3.0))))
            x = make(t / sample_rate, rng)
            ramp = min(len(x) // 8, 400)
            x[:ramp] *= np.linspace(0, 1, ramp)
            x[-ramp:] *= np.linspace(1, 0, ramp)
            yield kind, (0.5 * x / np.abs(x).max()).astype(np.float32)


def _harmonics(phase: Array, weights: NDArray[np.floating[Any]]) -> Array:
    return np.asarray(sum(w * np.sin((n + 1) * phase) for n, w in enumerate(weights)))


def _phase(hz: Array, t: Array) -> Array:
    return 2 * np.pi * np.cumsum(hz) * (t[1] - t[0])


def _band(t: Array, rng: np.random.Generator, low: float, high: float) -> Array:
    """Noise between ``low`` and ``high`` Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(len(t)))
    hz = np.fft.rfftfreq(len(t), t[1] - t[0])
    return np.fft.irfft(spectrum * ((hz > low) & (hz < high)), len(t))


def _pulses(t: Array, rate: float, decay: float) -> Array:
    return np.asarray(np.exp(-((t * rate) % 1.0) / rate * decay))


def _siren(t: Array, rng: np.random.Generator) -> Array:
    hz = rng.uniform(600, 900) * (1 + 0.3 * np.sin(2 * np.pi * rng.uniform(1, 2) * t))
    return _harmonics(_phase(hz, t), np.array([1, 0.3]))


def _sweep(t: Array, rng: np.random.Generator) -> Array:
    return np.sin(_phase(rng.uniform(200, 400) * 2 ** (3.5 * t / t[-1]), t))


VOICES: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "beep": lambda t, r: np.sin(2 * np.pi * r.uniform(900, 2500) * t),
    "buzzer": lambda t, r: np.sign(np.sin(2 * np.pi * r.uniform(90, 160) * t)),
    "siren": _siren,
    "sweep": _sweep,
    "hiss": lambda t, r: _band(t, r, r.uniform(3000, 4000), 7900),
    "rumble": lambda t, r: _band(t, r, 30, r.uniform(120, 220)),
    "wind": lambda t, r: _band(t, r, r.uniform(300, 450), r.uniform(700, 1000)),
    "clicks": lambda t, r: _band(t, r, 1500, 7900) * _pulses(t, r.uniform(7, 11), 250),
    "engine": lambda t, r: _band(t, r, 60, 900) * _pulses(t, r.uniform(22, 32), 60),
    "bell": lambda t, r: (
        np.exp(-4 * t) * _harmonics(_phase(r.uniform(500, 800) * 1.37 + 0 * t, t), r.uniform(0.2, 1, 7))
    ),
    "string": lambda t, r: np.exp(-3 * t) * _harmonics(_phase(r.uniform(110, 220) + 0 * t, t), 0.7 ** np.arange(12)),
    "horn": lambda t, r: _harmonics(_phase(r.uniform(220, 380) + 3 * np.sin(35 * t), t), 0.85 ** np.arange(14)),
    "drum": lambda t, r: np.exp(-9 * t) * np.sin(_phase(r.uniform(60, 90) * (1 + 2 * np.exp(-30 * t)), t)),
    "telephone": lambda t, r: (
        np.sin(2 * np.pi * r.uniform(430, 460) * t) * (np.sin(2 * np.pi * r.uniform(17, 23) * t) > 0)
    ),
}
