"""Reading one clip of an audio file: tolerant of format, strict about content.

    wave_T = read_wave(Path("rain.mp3"), start=60.0, duration=10.0, sample_rate=16_000)

Seeks to the clip instead of decoding from the beginning, mixes the channels, and resamples with soxr: DALI's own
resampler has no anti-alias filter. T samples.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from dali_pipes import containers
from dali_pipes.corrected import BytesOfFile, Correction
from dali_pipes.flac import flac_correction, second_flac
from dali_pipes.mp3 import has_mp3_header
from dali_pipes.quiet import quiet
from dali_pipes.wav_sizes import NOT_STATED, SLACK_SECONDS, second_wav, wav_correction
from megatron_af.foreign import no_file

SHORTFALL_SECONDS, SHORTFALL_FRACTION = 0.05, 0.05
"""A clip may be this much shorter than its manifest says (both together); more means a truncated file."""
_DATA_BYTES = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
"""In libsndfile's notes on WAV, AIFF and AU: bytes of audio by the header, and in the file."""
RATES = (1_000, 1_000_000)
"""Hz that a recording of sound may have. A broken header states others, and 1 Hz makes hours of a second."""
CANCELLED = 1e-3
"""Channels whose average has less than this of their power cancel each other: opposite phase, not stereo."""

RESIDUE = 1e-6
"""What resampling leaves of the peak of a sound that is too high for the new rate: rounding, and no sound."""
LENGTH, TRACKS = "another length than the header states", "several tracks of sound"
"""Kinds of notes."""


class AudioError(Exception):
    """A clip that cannot be used; the message says why, ``reason`` in one word for counting."""

    def __init__(self, message: str, reason: str = "unreadable") -> None:
        super().__init__(message, reason)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


def read_wave(source: Path | bytes, *, start: float, duration: float, sample_rate: int) -> NDArray[np.float32]:
    """One clip as mono float32 [T] at ``sample_rate``; see `read_mono`."""
    wave_T, rate = read_mono(source, start=start, duration=duration)
    return resample(wave_T, rate, sample_rate)


def read_mono(
    source: Path | bytes, *, start: float, duration: float, channels: str = "mix"
) -> tuple[NDArray[np.float32], int]:
    """One clip as mono float32 [T], and its own rate.

    Args:
        source: a file, or the bytes of one; libsndfile's formats, and any other through FFmpeg.
        start, duration: seconds.
        channels: ``mix`` averages them, ``first`` takes channel 0 (what the reference does but for mp3).

    Raises:
        AudioError: missing, not audio, begins behind the end, truncated, not finite, or without anything left of it
            when its channels are mixed.
    """
    wave_TC, rate = _decode(source, start, duration)
    _check_duration(len(wave_TC) / rate, duration)
    wave_T = to_mono(wave_TC, channels)
    if not np.isfinite(wave_T).all():
        raise AudioError("holds NaN or infinite samples", "not finite")
    if channels == "mix" and wave_TC.shape[1] > 1 and _cancels(wave_TC, wave_T):
        raise AudioError("its channels cancel each other when they are mixed (opposite phase)", "channels cancel")
    return wave_T, rate


def notes_on(source: Path | bytes) -> dict[str, str]:
    """What somebody should know of a recording that was read, by its kind; nothing of most."""
    found = {LENGTH: header_note(source), TRACKS: containers.tracks_note(source)}
    return {kind: note for kind, note in found.items() if note}


def header_note(source: Path | bytes) -> str:
    """What was read although the header states something else; empty where they agree or nothing can be read."""
    try:
        correction = _correction(source)
        return correction.note if correction else containers.length_note(source)
    except OSError:
        return ""


def is_recording(source: Path | bytes) -> bool:
    """Whether a file is audio beyond doubt, by its content alone.

    Formats without a beginning of their own (MP3, AAC and others) are found by guessing, in any bytes: they count only
    under their suffixes.

    Raises:
        AudioError: it cannot be opened at all.
    """
    _check_file(source)
    return _by_header(source, lambda file: bool(file.format != "MP3"), containers.is_certain)


def recording_seconds(source: Path | bytes) -> float:
    """Length of a recording by its header; packets are counted where the header knows none.

    A file that ends before its header says has the header's length: reading it finds what is missing.

    Raises:
        AudioError: missing, not audio, or without a single sample.
    """
    if not (seconds := _lengths(source)[0]):
        raise AudioError("holds no samples: its header is all there is", "empty")
    return seconds


def samples_a_second(source: Path | bytes) -> int:
    """Of all channels together, by the header: what a second of it takes to decode.

    Raises:
        AudioError: missing, or not audio.
    """
    return _by_header(source, lambda file: int(file.samplerate * file.channels), containers.samples_a_second)


def _by_header[Told](
    source: Path | bytes,
    by_libsndfile: Callable[[soundfile.SoundFile], Told],
    by_ffmpeg: Callable[[Path | bytes], Told],
) -> Told:
    """What one of the two readers tells of a recording: FFmpeg where libsndfile does not know it."""
    try:
        with _open(source) as file:
            return by_libsndfile(file)
    except (soundfile.LibsndfileError, OSError):
        pass
    try:
        return by_ffmpeg(source)
    except containers.ContainerError as error:
        raise AudioError(f"cannot be opened: {error}") from error


def check_header(path: Path, *, start: float, duration: float) -> None:
    """What can be known without decoding: the file is there, is audio, and is long enough for the clip.

    Raises:
        AudioError: it is not.
    """
    promised, there = _lengths(path)
    _check_start(start, there)
    _check_duration(promised - start, duration)
    if there < min(promised, start + duration):
        raise AudioError(f"truncated: {there:.2f} s of {promised:.2f} s are there", "truncated")


def _cancels(wave_TC: NDArray[np.float32], wave_T: NDArray[np.float32]) -> bool:
    loud = float(np.mean(np.square(wave_TC, dtype=np.float64)))
    return float(np.mean(np.square(wave_T, dtype=np.float64))) < CANCELLED * loud


def _lengths(source: Path | bytes) -> tuple[float, float]:
    """Seconds that the header promises, and seconds that the file is large enough for."""
    _check_file(source)
    try:
        with _open(source) as file:
            _check_rate(file.samplerate)
            if _states_length(file, source):
                return _promised_frames(file) / file.samplerate, file.frames / file.samplerate
    except (soundfile.LibsndfileError, OSError):
        pass  # FFmpeg may know it, and there are words for what it does not
    try:
        seconds = containers.seconds(source, count=_is_chained(source))
        return seconds, seconds
    except containers.ContainerError as error:
        raise AudioError(f"cannot be opened: {error}") from error


def _decode(source: Path | bytes, start: float, duration: float) -> tuple[NDArray[np.float32], int]:
    reason, seekable = "unreadable", True
    _check_file(source)
    try:
        with _open(source) as file:
            _check_rate(file.samplerate)
            if seekable := _states_length(file, source):
                reason = "truncated"  # what libsndfile opens but cannot read
                return _read(file, start, duration), file.samplerate
    except (soundfile.LibsndfileError, OSError):
        pass
    try:
        _check_start(start, containers.seconds(source, count=_is_chained(source)) or start + duration)
        wave_TC, rate = containers.decode(source, start=start, duration=duration, seek=seekable)
        _check_rate(rate)
        return wave_TC, rate
    except containers.ContainerError as error:
        raise AudioError(f"cannot be decoded: {error}", reason) from error


def _read(file: soundfile.SoundFile, start: float, duration: float) -> NDArray[np.float32]:
    rate, promised = file.samplerate, _promised_frames(file)
    _check_start(start, promised / rate)
    begin, wanted = round(start * rate), round(duration * rate)
    if begin:
        file.seek(min(begin, file.frames))
    wave_TC: NDArray[np.float32] = file.read(wanted, dtype="float32", always_2d=True)
    lost = min(wanted, promised - begin) - len(wave_TC)
    # MP3's headers count in frames of 26 ms and are often off by some
    if lost > SLACK_SECONDS * rate and file.subtype != "MPEG_LAYER_III":
        raise AudioError(f"truncated: {lost / rate:.2f} s of what its header promises are missing", "truncated")
    return wave_TC


def _states_length(file: soundfile.SoundFile, source: Path | bytes) -> bool:
    """Whether the header knows how long the recording is; seeking by time needs that, too."""
    if file.format == "MP3":  # without a table of contents, libsndfile guesses from the first frame
        return has_mp3_header(source)
    if file.format == "OGG":
        return not containers.is_chained(source)
    return bool(file.frames < 1 << 62)  # a FLAC stream written into a pipe


def _promised_frames(file: soundfile.SoundFile) -> int:
    """Frames by the header; libsndfile counts those that are there."""
    stated, there = 0, 1
    for found in _DATA_BYTES.finditer(file.extra_info):
        stated, there = int(found[1]), int(found[2])
    if there < stated < NOT_STATED:
        return int(file.frames * stated / max(1, there))
    return int(file.frames)


def _is_chained(source: Path | bytes) -> bool:
    try:
        return containers.is_chained(source)
    except OSError:
        return False


@contextmanager
def _open(source: Path | bytes) -> Iterator[soundfile.SoundFile]:
    if second_wav(source) or second_flac(source):
        raise AudioError("is several recordings one behind another: join them, or keep one", "several")
    if isinstance(source, Path) and source.suffix.lower() == ".raw":
        raise OSError("soundfile takes the name for what is in it, and wants to be told the rate")
    correction = _correction(source)
    bare = BytesOfFile(source) if isinstance(source, bytes) else source
    with quiet(), soundfile.SoundFile(correction.opened(source) if correction else bare) as file:
        yield file


def _correction(source: Path | bytes) -> Correction | None:
    return wav_correction(source) or flac_correction(source)


def _check_file(source: Path | bytes) -> None:
    if isinstance(source, Path) and (kind := no_file(source)):
        raise AudioError(f"cannot be opened: it is {kind}, no file")


def _check_rate(rate: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"has {rate:,} samples a second by its header; sound has {RATES[0]:,} to {RATES[1]:,}", "rate")


def _check_start(start: float, seconds: float) -> None:
    if not seconds:
        raise AudioError("holds no samples: its header is all there is", "empty")
    if start >= seconds:
        raise AudioError(f"begins at {start:.2f} s of a recording of {seconds:.2f} s", "behind the end")


def _check_duration(seconds: float, promised: float) -> None:
    if seconds < promised * (1 - SHORTFALL_FRACTION) - SHORTFALL_SECONDS:
        raise AudioError(f"truncated: {seconds:.2f} s of {promised:.2f} s are there", "truncated")


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
    if len(out) and np.abs(out).max() < RESIDUE * np.abs(wave_T).max():
        out[:] = 0  # else a model that hears clips at their loudest would hear noise
    return out
