"""Tones in files."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 22_050
ENCODED_RATE = 48_000


def tone(seconds: float, rate: int = RATE, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(
    path: Path, codec: str, length: float, *, channels: int = 1, xing: bool = True, tracks: Sequence[str] = ("",)
) -> np.ndarray:
    """A tone at 48 kHz that rises by 100 Hz a second, so that each place sounds differently; by FFmpeg, into a file.

    Args:
        tracks: language of each; those behind the first are silent.
    """
    t = np.arange(round(length * ENCODED_RATE)) / ENCODED_RATE
    wave = (0.4 * np.sin(2 * np.pi * (300 * t + 50 * t**2))).astype(np.float32)
    options = {} if xing else {"write_xing": "0", "id3v2_version": "0"}
    with av.open(str(path), "w", options=options) as container:
        layout = "mono" if channels == 1 else "stereo"
        streams = [container.add_stream(codec, rate=ENCODED_RATE, layout=layout) for _ in tracks]
        for stream, language in zip(streams, tracks, strict=True):
            stream.metadata["language"] = language
        for begin in range(0, len(wave), 4800):
            piece = np.stack([wave[begin : begin + 4800], -wave[begin : begin + 4800]][:channels])
            for stream in streams:
                sound = piece if stream is streams[0] else 0 * piece
                frame = av.AudioFrame.from_ndarray(sound, "fltp", layout)
                frame.sample_rate, frame.pts, frame.time_base = ENCODED_RATE, begin, Fraction(1, ENCODED_RATE)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return wave
