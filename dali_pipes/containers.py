"""Audio out of whatever FFmpeg opens: m4a, aac, webm, wma, the sound of a video.

    wave_TC, rate = decode(Path("talk.m4a"), start=60.0, duration=10.0)

Seconds count from the first sample of the sound, whatever the container's clock says there: in videos the sound often
begins later than the picture, and broadcast streams begin anywhere. T samples, C channels.
"""

import io
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import av
import av.error
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from dali_pipes.corrected import as_file
from dali_pipes.mp3 import has_mp3_header
from megatron_af.foreign import described, head_of, opened

_OGG_PAGE = 27
"""Bytes of a page's header before its table of segments (RFC 3533, section 6)."""
_GUESSED = (
    "mp3",
    "aac",
    "ac3",
    "eac3",
    "dts",
    "mlp",
    "truehd",
    "gsm",
    "loas",
    "adp",
    "sbc",
    "mpeg",
    "mpegvideo",
    "tty",
)
"""FFmpeg's formats that any bytes may look like."""
_TIMED = ("mpegts", "mpeg")
"""Streams that state no length: FFmpeg goes by when the last packet begins, and several frames may lie in one."""
_SHARED = ("asf", "avi")
"""Formats in which a stream's length is that of the file, pictures included, or counts the time before its start."""
_SOUGHT = ("mov", "matroska", "asf", "flv", "avi", "mpegts", "caf", "aiff", "wv", "tta", "aac", "ac3", "eac3", "dts")
"""Formats that say when each packet is heard, or of which FFmpeg finds out. Elsewhere it goes by a bit rate (codecs in
WAV, RealAudio), gives the packets of an Ogg's last page earlier times, or lands inside a packet (MPEG)."""
_SLACK = 0.5
"""Seconds by which what a container lists may exceed what it states: the last packet is seldom full."""
_MARGIN = 0.2
"""Seconds decoded ahead of the start: codecs with overlapping frames need a run-up."""


_ONE_TRACK = (b"RIFF", b"RF64", b"fLaC", b"FORM", b".snd", b"ID3", b"\xff")
"""Beginnings of files with one track at most: WAV, FLAC, AIFF, AU, MP3; AVI begins as WAV does."""


class ContainerError(Exception):
    """FFmpeg cannot open or decode the audio."""


def decode(
    source: Path | bytes, *, start: float, duration: float, seek: bool = True
) -> tuple[NDArray[np.float32], int]:
    """Samples float32 [T, C] from ``start`` on, at most ``duration`` seconds, and their rate.

    Args:
        seek: jump to the start, in formats that know where it is; else decode from the beginning, as without (the
            file has no index to trust).

    Raises:
        ContainerError: no container, no audio in it, or a broken stream.
    """
    try:
        with _opened(source) as container:
            stream = _audio_stream(container, source)
            frames = _frames(container, stream)
            first = next(frames, None)
            rate = stream.codec_context.sample_rate
            if first is None:
                return np.zeros((0, 1), np.float32), rate
            origin = _time(first, stream)
            if seek and start > _MARGIN and container.format.name.split(",")[0] in _SOUGHT:
                container.seek(round((origin + start - _MARGIN) / stream.time_base), stream=stream)
                frames = _frames(container, stream)
            else:
                frames = chain([first], frames)
            return _cut(frames, stream, rate, origin + start, duration), rate
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ContainerError(_in_words(error, source)) from error


def seconds(source: Path | bytes, *, count: bool = False) -> float:
    """Length of the sound by the container, or that of its packets where it states none.

    Args:
        count: decode it and count, whatever is stated.

    Raises:
        ContainerError: no container, or no audio in it.
    """
    try:
        with _opened(source) as container:
            stream = _audio_stream(container, source)
            if count:
                return sum(frame.samples / frame.sample_rate for frame in container.decode(stream))
            kind = container.format.name
            guessed = kind in _TIMED or (kind in _GUESSED and not (kind == "mp3" and has_mp3_header(source)))
            shared = kind in _SHARED and len(container.streams) > 1
            if stream.duration and not guessed and not shared:
                stated, listed = _stated(stream), _listed(container, stream)
                return listed if listed > stated + _SLACK else stated
            # What a container states without saying it of the stream begins and ends with its other streams.
            alone = len(container.streams) == 1 and not stream.start_time
            if container.duration and alone and not guessed:
                return container.duration / av.time_base
            packets = _in_packets(container, stream)
        return packets or seconds(source, count=True)  # a codec whose packets say no length
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ContainerError(_in_words(error, source)) from error


def samples_a_second(source: Path | bytes) -> int:
    """Of all channels together.

    Raises:
        ContainerError: no container, or no audio in it.
    """
    try:
        with _opened(source) as container:
            codec = _audio_stream(container, source).codec_context
            return int(codec.sample_rate * codec.channels)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ContainerError(_in_words(error, source)) from error


def length_note(source: Path | bytes) -> str:
    """What was read although an MP4's header states less; empty where they agree or nothing can be read."""
    if head_of(source)[4:8] != b"ftyp":
        return ""
    try:
        with _opened(source) as container:
            stream = _audio_stream(container, source)
            stated, listed = _stated(stream), _listed(container, stream)
    except (av.error.FFmpegError, OSError, ValueError, ContainerError):
        return ""
    if not 0 < stated < listed - _SLACK:
        return ""
    return f"its header states {stated:.2f} s; the {listed:.2f} s that are there were read"


def tracks_note(source: Path | bytes) -> str:
    """Which of several tracks of sound was read, as a film has one for each language; empty where there is one."""
    head = head_of(source)
    if head.startswith(_ONE_TRACK) and head[8:12] != b"AVI ":
        return ""
    try:
        with _opened(source) as container:
            tracks = [_name(stream) for stream in container.streams.audio]
    except (av.error.FFmpegError, OSError, ValueError):
        return ""
    if len(tracks) < 2:
        return ""
    return f"it has {len(tracks)} tracks of sound ({', '.join(tracks)}); the first was read"


def _name(stream: AudioStream) -> str:
    says = [stream.metadata.get(key, "") for key in ("language", "title")]
    return " ".join(word for word in says if word and word != "und") or f"track {stream.index}"


def is_certain(source: Path | bytes) -> bool:
    """Whether FFmpeg knows the format by more than a guess.

    Raises:
        ContainerError: no container, or no audio in it.
    """
    try:
        with _opened(source) as container:
            return bool(_audio_stream(container, source)) and container.format.name not in _GUESSED
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ContainerError(_in_words(error, source)) from error


def is_chained(source: Path | bytes) -> bool:
    """Whether an Ogg file is several recordings one behind another, as radio streams are; libsndfile reads the first.

    Raises:
        OSError: the file cannot be read.
    """
    with as_file(source) as file:
        begun = False
        while len(head := file.read(_OGG_PAGE)) == _OGG_PAGE and head[:4] == b"OggS":
            first_of_stream = bool(head[5] & 2)
            if begun and first_of_stream:
                return True
            begun = begun or not first_of_stream  # several streams side by side begin before any of them goes on
            file.seek(sum(file.read(head[26])), io.SEEK_CUR)
    return False


def _listed(container: InputContainer, stream: AudioStream) -> float:
    """Seconds of the packets that an MP4 lists, where they seem to be more than it states; else 0.

    An edit may leave some of them out, which FFmpeg knows only of what it reads.
    """
    packet = stream.codec_context.frame_size or 0
    seconds = stream.frames * packet / stream.codec_context.sample_rate
    if not container.format.name.startswith("mov") or seconds <= _stated(stream) + _SLACK:
        return 0.0
    return _in_packets(container, stream)


def _stated(stream: AudioStream) -> float:
    return float((stream.duration or 0) * stream.time_base)


def _in_packets(container: InputContainer, stream: AudioStream) -> float:
    """Seconds of all packets.

    In a clock of milliseconds each length is rounded down, which adds up: there the times of the first and the last
    packet tell more, unless they differ by more than rounding, as with a gap between them, which is not decoded.
    """
    tick = float(stream.time_base or 0)
    first: float | None = None
    number, total, end = 0, 0.0, 0.0
    for packet in container.demux(stream):
        seconds = float((packet.duration or 0) * (packet.time_base or 0))
        number, total = number + 1, total + seconds
        if packet.pts is not None:
            begin = float(packet.pts * (packet.time_base or 0))
            first = begin if first is None else min(first, begin)
            end = max(end, begin + seconds)
    span = end - (first or 0.0)
    return span if total and abs(span - total) <= number * tick else total


def _opened(source: Path | bytes) -> InputContainer:
    # "file:" keeps a name such as "concat:a|b" from being a protocol that reads somewhere else.
    return av.open(io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}", "r")


def _audio_stream(container: InputContainer, source: Path | bytes) -> AudioStream:
    codec = container.streams.audio[0].codec_context if container.streams.audio else None
    if codec is None or not codec.sample_rate:  # of a format that it knows by name only, FFmpeg has no codec
        raise ContainerError(f"it {described(head_of(source)) or 'holds no audio'}")
    return container.streams.audio[0]


def _frames(container: InputContainer, stream: AudioStream) -> Iterator[av.AudioFrame]:
    """Decoded frames; of an MP3 without what is none, such as the tag of another MP3 behind it."""
    if container.format.name != "mp3":
        yield from container.decode(stream)
        return
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue
        yield from (frame for frame in frames if isinstance(frame, av.AudioFrame))


def _cut(
    frames: Iterable[av.AudioFrame], stream: AudioStream, rate: int, begin: float, duration: float
) -> NDArray[np.float32]:
    """Samples [T, C] from ``begin`` on, a time by the container's clock."""
    resampler = av.AudioResampler(format="fltp")  # the codec's own rate and channels, as planar floats
    parts: list[NDArray[np.float32]] = []
    first: float | None = None
    have = 0
    for frame in frames:
        if first is None:
            first = _time(frame, stream)
        for piece in resampler.resample(frame):
            parts.append(piece.to_ndarray().astype(np.float32, copy=False))
            have += parts[-1].shape[1]
        if first + have / rate >= begin + duration:
            break
    wave_TC = np.concatenate(parts, axis=1).T if parts else np.zeros((0, 1), np.float32)
    skip = max(0, round((begin - (first or 0.0)) * rate))
    return np.ascontiguousarray(wave_TC[skip : skip + round(duration * rate)], np.float32)


def _time(frame: av.AudioFrame, stream: AudioStream) -> float:
    return float((frame.pts or 0) * (frame.time_base or stream.time_base))


def _in_words(error: Exception, source: Path | bytes) -> str:
    """What is wrong with a file, instead of FFmpeg's words for it."""
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    if isinstance(error, PermissionError):
        return "it may not be read"
    if isinstance(source, Path):
        try:
            with opened(source):
                pass
        except OSError as system:  # a link that leads to itself, a disk that fails: not an empty file
            return f"it cannot be opened: {(system.strerror or type(system).__name__).lower()}"
    if known := described(head_of(source)):
        return f"it {known}"
    if isinstance(error, ValueError) and "AudioResampler" in str(error):
        return "its rate or channels change on the way: convert its parts one by one"
    return "it is damaged, cut, or of a kind that neither libsndfile nor FFmpeg knows"
