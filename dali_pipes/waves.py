"""Reading one clip of an audio file: tolerant of format, strict about content.

    wave_T = read_wave(Path("rain.mp3"), start=60.0, duration=10.0, sample_rate=16_000)

Seeks to the clip instead of decoding from the beginning, mixes the channels, and resamples with soxr: DALI's own
resampler has no anti-alias filter. T samples.
"""

import io
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

SHORTFALL_SECONDS, SHORTFALL_FRACTION = 0.05, 0.05
"""A clip may be this much shorter than its manifest says (both together); more means a truncated file."""


class AudioError(Exception):
    """A clip that cannot be used; the message says why."""


def read_wave(
    source: Path | bytes, *, start: float, duration: float, sample_rate: int, channels: str = "mix"
) -> NDArray[np.float32]:
    """One clip as mono float32 [T] at ``sample_rate``.

    Args:
        source: a file, or the bytes of one.
        start, duration: seconds.
        channels: ``mix`` averages them, ``first`` takes channel 0 (what the reference does but for mp3).

    Raises:
        AudioError: missing, not audio, begins behind the end, truncated, or not finite.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            first = _first_frame(file, start)
            wave_TC = _read(file, first, round(duration * file.samplerate))
            rate = file.samplerate
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"cannot be decoded: {error}") from error
    _check_duration(len(wave_TC) / rate, duration)
    wave_T = to_mono(wave_TC, channels)
    if not np.isfinite(wave_T).all():
        raise AudioError("holds NaN or infinite samples")
    return resample(wave_T, rate, sample_rate)


def check_header(path: Path, *, start: float, duration: float) -> None:
    """What can be known without decoding: the file is there, is audio, and is long enough for the clip.

    Raises:
        AudioError: it is not.
    """
    try:
        with soundfile.SoundFile(path) as file:
            first = _first_frame(file, start)
            _check_duration((file.frames - first) / file.samplerate, duration)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"cannot be opened: {error}") from error


def to_mono(wave_TC: NDArray[np.float32], channels: str) -> NDArray[np.float32]:
    """[T, C] -> [T]."""
    if wave_TC.shape[1] == 1 or channels == "first":
        return wave_TC[:, 0]
    return wave_TC @ np.full(wave_TC.shape[1], 1 / wave_TC.shape[1], np.float32)  # 18 times faster than mean(1)


def resample(wave_T: NDArray[np.float32], rate: int, target: int) -> NDArray[np.float32]:
    """Band-limited change of the sampling rate."""
    if rate == target:
        return np.ascontiguousarray(wave_T)
    out: NDArray[np.float32] = soxr.resample(wave_T, rate, target, quality="HQ")
    return out


def _check_duration(seconds: float, promised: float) -> None:
    if seconds < promised * (1 - SHORTFALL_FRACTION) - SHORTFALL_SECONDS:
        raise AudioError(f"truncated: {seconds:.2f} s of {promised:.2f} s are there")


def _first_frame(file: soundfile.SoundFile, start: float) -> int:
    rate: int = file.samplerate
    first = round(start * rate)
    if first >= file.frames:
        raise AudioError(f"begins at {start:.2f} s of a recording of {file.frames / rate:.2f} s")
    return first


def _read(file: soundfile.SoundFile, first: int, frames: int) -> NDArray[np.float32]:
    if first:
        file.seek(first)
    out: NDArray[np.float32] = file.read(frames, dtype="float32", always_2d=True)
    return out
