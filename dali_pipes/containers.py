"""Audio out of whatever FFmpeg opens: m4a, aac, webm, wma, the sound of a video.

    wave_TC, rate = decode(Path("talk.m4a"), start=60.0, duration=10.0)

T samples, C channels.
"""

import io
from pathlib import Path

import av
import av.error
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

_MARGIN = 0.2
"""Seconds decoded ahead of the start: codecs with overlapping frames need a run-up."""


class ContainerError(Exception):
    """FFmpeg cannot open or decode the audio."""


def decode(
    source: Path | bytes, *, start: float, duration: float, seek: bool = True
) -> tuple[NDArray[np.float32], int]:
    """Samples float32 [T, C] from ``start`` on, at most ``duration`` seconds, and their rate.

    Args:
        seek: jump to the start; without, decode from the beginning (the file has no index to trust).

    Raises:
        ContainerError: no container, no audio in it, or a broken stream.
    """
    try:
        with _opened(source) as container:
            stream = _audio_stream(container)
            if seek and start > _MARGIN:
                container.seek(round((start - _MARGIN) / stream.time_base), stream=stream)
            rate = stream.codec_context.sample_rate
            return _frames(container, stream, rate, start, duration), rate
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ContainerError(str(error)) from error


def seconds(source: Path | bytes) -> float:
    """Length that the container states, or that of its packets where it states none.

    Raises:
        ContainerError: no container, or no audio in it.
    """
    try:
        with _opened(source) as container:
            stream = _audio_stream(container)
            guessed = container.format.name == "mp3" and not has_mp3_header(source)
            if guessed or not (stream.duration or container.duration):
                return sum(float((p.duration or 0) * p.time_base) for p in container.demux(stream) if p.time_base)
            if stream.duration:
                return float(stream.duration * stream.time_base)
            return (container.duration or 0) / av.time_base
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ContainerError(str(error)) from error


def has_mp3_header(source: Path | bytes) -> bool:
    """Whether an MP3 states its length in a Xing, Info or VBRI frame; otherwise every program guesses it."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        head = file.read(10)
        tag = 0
        if head[:3] == b"ID3":  # sizes in an ID3 tag have 7 bits a byte
            tag = 10 + sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(head[6:10]))
        file.seek(tag)
        frame = file.read(4096)
    return any(name in frame for name in (b"Xing", b"Info", b"VBRI"))


def _opened(source: Path | bytes) -> InputContainer:
    # "file:" keeps a name such as "concat:a|b" from being a protocol that reads somewhere else.
    return av.open(io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}", "r")


def _audio_stream(container: InputContainer) -> AudioStream:
    if not container.streams.audio or not container.streams.audio[0].codec_context.sample_rate:
        raise ContainerError("holds no audio")
    return container.streams.audio[0]


def _frames(
    container: InputContainer, stream: AudioStream, rate: int, start: float, duration: float
) -> NDArray[np.float32]:
    resampler = av.AudioResampler(format="fltp")  # the codec's own rate and channels, as planar floats
    parts: list[NDArray[np.float32]] = []
    first: float | None = None
    have = 0
    for frame in container.decode(stream):
        if first is None:
            first = float((frame.pts or 0) * (frame.time_base or stream.time_base))
        for piece in resampler.resample(frame):
            parts.append(piece.to_ndarray().astype(np.float32, copy=False))
            have += parts[-1].shape[1]
        if first + have / rate >= start + duration:
            break
    wave_TC = np.concatenate(parts, axis=1).T if parts else np.zeros((0, 1), np.float32)
    begin = round((start - (first or 0.0)) * rate)
    return np.ascontiguousarray(wave_TC[max(0, begin) : max(0, begin) + round(duration * rate)], np.float32)
