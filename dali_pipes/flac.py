"""What a FLAC stream's header promises: promising less of it, and finding that it promises too little.

    data = shorten_flac(path.read_bytes(), samples=30 * 16_000)     # a decoder now stops after 30 s
    correction = flac_correction(Path("field.flac"))                # None: the header is right, or this is no FLAC

A stage with few windows would otherwise decode the whole of a long recording: DALI's decoder reads a stream to the
end that its header promises. So does libsndfile, which loses what an encoder that was cut off, or an editor, wrote
behind that. Sections of RFC 9639.
"""

import io
import re
from pathlib import Path
from typing import IO

from dali_pipes.corrected import Correction, as_file

_TOTAL_SAMPLES = 21
"""Byte of the STREAMINFO field "total samples": its low 4 bits and the 4 bytes behind (8.2)."""
_TAIL_BYTES, _MOST_TAIL_BYTES = 1 << 16, 1 << 20
"""Of a file's end, where its last frames are looked for, unless two of its largest take more."""
_SYNC = re.compile(rb"\xff[\xf8\xf9](?=.{4})", re.DOTALL)
_BEGINS = b"fLaC\x00\x00\x00\x22"
"""The mark and the head of STREAMINFO."""


def shorten_flac(data: bytes, samples: int) -> bytes:
    """The stream with at most ``samples`` promised in its header; the audio frames are untouched.

    Raises:
        ValueError: not a FLAC stream.
    """
    total = flac_samples(data)
    if samples >= total:
        return data
    return data[:_TOTAL_SAMPLES] + _total(data, samples) + data[_TOTAL_SAMPLES + 5 :]


def flac_format(data: bytes) -> tuple[int, int] | None:
    """Sampling rate and channels of a FLAC stream; None when the bytes are something else."""
    if data[:4] != b"fLaC" or len(data) < 42:
        return None
    return int.from_bytes(data[18:21], "big") >> 4, (data[20] >> 1 & 7) + 1


def flac_samples(data: bytes) -> int:
    """Samples per channel that the header promises.

    Raises:
        ValueError: not a FLAC stream.
    """
    if data[:4] != b"fLaC" or len(data) < 42 or data[4] & 0x7F != 0:
        raise ValueError(f"expected a FLAC stream that begins with STREAMINFO, got {data[:8]!r}")
    return int.from_bytes(data[_TOTAL_SAMPLES : _TOTAL_SAMPLES + 5], "big") & (1 << 36) - 1


def flac_correction(source: Path | bytes) -> Correction | None:
    """The number of samples that a FLAC's frames hold, where its header states fewer; None where nothing is to be
    mended. (One that states none at all, as written into a pipe, others read to the end.)

    Raises:
        OSError: the file cannot be read.
    """
    with as_file(source) as file:
        head = file.read(42)
        if not (stated := _stated(head)):
            return None
        there = _last_sample(file, head)
    if there <= stated:
        return None
    note = f"its header states {stated:,} samples; the {there:,} that are there were read"
    return Correction(_TOTAL_SAMPLES, _total(head, there), note)


def second_flac(source: Path | bytes) -> bool:
    """Whether a FLAC goes on with another one: ``cat a.flac b.flac``; programs read the first, or its length.

    The whole file is looked through only where its last frame is not the one that the header tells of, or where so
    many frames cannot be so long: two that are alike in length and fill less than that are not noticed.

    Raises:
        OSError: the file cannot be read.
    """
    with as_file(source) as file:
        head = file.read(42)
        if not (stated := _stated(head)):
            return False
        block, largest = int.from_bytes(head[8:10], "big"), int.from_bytes(head[15:18], "big")
        length = file.seek(0, io.SEEK_END)
        fits = not largest or not block or length - _frames_begin(file) <= -(-stated // block) * largest
        if fits and _last_sample(file, head) in (0, stated):
            return False
        file.seek(42)
        before = b""
        while data := file.read(1 << 20):
            if _BEGINS in before + data:
                return True
            before = data[-len(_BEGINS) :]
    return False


def _stated(head: bytes) -> int:
    """Samples per channel; 0 where none are stated, and of what is no FLAC."""
    try:
        return flac_samples(head)
    except ValueError:
        return 0


def _total(head: bytes, samples: int) -> bytes:
    """The bytes of "total samples"."""
    return (head[_TOTAL_SAMPLES] >> 4 << 36 | samples).to_bytes(5, "big")


def _frames_begin(file: IO[bytes]) -> int:
    """Byte behind the last of the blocks of metadata (8.1)."""
    at, last = 4, False
    while not last:
        file.seek(at)
        if len(head := file.read(4)) < 4:
            break
        at, last = at + 4 + int.from_bytes(head[1:], "big"), head[0] >= 0x80
    return at


def _last_sample(file: IO[bytes], head: bytes) -> int:
    """Samples up to the end of the last frame, which begins where the one before it ends; 0 where no such two are."""
    most = min(max(_TAIL_BYTES, 2 * int.from_bytes(head[15:18], "big")), _MOST_TAIL_BYTES)
    file.seek(max(42, file.seek(0, io.SEEK_END) - most))
    tail = file.read()
    ends, last = set[int](), 0
    for found in _SYNC.finditer(tail):
        if (frame := _frame(tail[found.start() : found.start() + 16], int.from_bytes(head[8:10], "big"))) is None:
            continue
        begin, size = frame
        if begin in ends:
            last = begin + size
        ends.add(begin + size)
    return last


def _frame(data: bytes, block: int) -> tuple[int, int] | None:
    """First sample and number of samples of the frame whose head the bytes begin with (9.1); None where they are none.

    Args:
        block: samples of a frame, of a stream in which all have as many.
    """
    code, channels, width = data[2] >> 4, data[3] >> 4, data[3] >> 1 & 7
    if not code or data[2] & 15 == 15 or channels > 10 or width == 3 or data[3] & 1:
        return None
    more = max(1, 8 - (data[4] ^ 0xFF).bit_length())  # leading ones: bytes of the coded number, as in UTF-8
    if more == 8 or data[4] & 0xC0 == 0x80:
        return None
    more = 1 if data[4] < 0x80 else more
    number = data[4] & (0x7F if more == 1 else 0x7F >> more)
    for byte in data[5 : 4 + more]:
        number = number << 6 | byte & 0x3F
    at = 4 + more
    if code in (6, 7):
        size, at = int.from_bytes(data[at : at + code - 5], "big") + 1, at + code - 5
    else:
        size = 192 if code == 1 else 576 << code - 2 if code < 6 else 256 << code - 8
    at += {12: 1, 13: 2, 14: 2}.get(data[2] & 15, 0)
    if len(data) <= at or _crc8(data[:at]) != data[at]:
        return None
    return (number if data[1] & 1 else number * block), size


def _crc8(data: bytes) -> int:
    """With the polynomial x^8 + x^2 + x + 1 (9.1.8)."""
    rest = 0
    for byte in data:
        rest ^= byte
        for _ in range(8):
            rest = (rest << 1 ^ (0x107 if rest & 0x80 else 0)) & 0x1FF
    return rest
