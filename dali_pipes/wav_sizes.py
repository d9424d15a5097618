"""WAV headers that state a wrong amount of audio: what is really there.

    correction = wav_correction(Path("field.wav"))      # None: the header is right, or the file is no WAV
    correction.opened(Path("field.wav"))                # the same file, with the right size in its header

A recorder that lost power (also one that writes RF64), a program that wrote into a pipe, and many converters leave 0,
2^32 - 1 or a size that is off by some bytes. A file that was cut is another matter: there the size of the whole RIFF,
which stands at the beginning, is beyond the end as well.
"""

import io
import struct
from pathlib import Path
from typing import IO

from dali_pipes.corrected import Correction, as_file

NOT_STATED = 0x7FFF_0000
"""Writers that do not know the length yet state about 2^31 or 2^32 bytes."""
SLACK_SECONDS = 0.01
"""So little missing at the end is a wrong size, not a cut file."""
_LARGEST = 0xFFFF_FFFE


def second_wav(source: Path | bytes) -> bool:
    """Whether a WAV, an AIFF or an AU file goes on with another one: ``cat a.wav b.wav``; programs read the first. Of
    two pieces of audio in one WAV they read the first or the last.

    Raises:
        OSError: the file cannot be read.
    """
    with as_file(source) as file:
        head = file.read(12)
        if len(head) < 12 or head[:4] not in (b"RIFF", b"RIFX", b"FORM", b".snd"):
            return False
        first, second = struct.unpack("<II" if head[:4] == b"RIFF" else ">II", head[4:])
        end = first + second if head[:4] == b".snd" else 8 + first + (first & 1)
        if head[:4] == b"RIFF" and head[8:] == b"WAVE" and _pieces(file) > 1:
            return True
        file.seek(end)
        behind = file.read(12)
    return behind[:4] == head[:4] and (head[:4] == b".snd" or behind[8:] == head[8:])


def _pieces(file: IO[bytes]) -> int:
    """How many chunks of a WAV hold audio."""
    end = file.seek(0, io.SEEK_END)
    position, found = 12, 0
    while position + 8 <= end:
        file.seek(position)
        chunk = file.read(8)
        size = int.from_bytes(chunk[4:], "little")
        if position + 8 + size > end:
            break
        found += chunk[:4] == b"data" and (size > 0 or found > 0)  # an empty one behind another hides that
        position += 8 + size + (size & 1)
    return found


def wav_correction(source: Path | bytes) -> Correction | None:
    """What is wrong with the size that a WAV's header states; None where nothing is that can be mended.

    Raises:
        OSError: the file cannot be read.
    """
    with as_file(source) as file:
        head = file.read(12)
        if head[:4] not in (b"RIFF", b"RIFX", b"RF64") or head[8:12] != b"WAVE":
            return None
        order = ">" if head[:4] == b"RIFX" else "<"
        length = file.seek(0, io.SEEK_END)
        riff_end = 8 + int(struct.unpack(f"{order}I", head[4:8])[0])
        block, rate, position, large = 1, 0, 12, 0
        while True:
            file.seek(position)
            chunk = file.read(8)
            if len(chunk) < 8:
                return None
            size = int(struct.unpack(f"{order}I", chunk[4:])[0])
            if chunk[:4] == b"data":
                break
            if chunk[:4] == b"ds64":
                large = position + 16  # where RF64 has the size of its audio, of 8 bytes
            if chunk[:4] == b"fmt ":
                form = file.read(16)
                if len(form) == 16:
                    rate, block = struct.unpack(f"{order}I", form[4:8])[0], struct.unpack(f"{order}H", form[12:14])[0]
            position += 8 + size + (size & 1)
        begin, there, place = position + 8, length - position - 8, position + 4
        if head[:4] == b"RF64" and large:
            file.seek(large)
            size, place = int(struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]), large
            if size:  # of what is stated, others know what to do
                return None
        true = _true_size(file, order, begin, size, there, riff_end, length, rate * max(1, block))
    if true is None:
        return None
    true = min(true - true % max(1, block), _LARGEST)
    note = f"its header states {size:,} bytes of audio; the {true:,} that are there were read"
    return Correction(place, struct.pack(f"{order}I", true), note)


def _true_size(
    file: IO[bytes], order: str, begin: int, stated: int, there: int, riff_end: int, length: int, byte_rate: int
) -> int | None:
    if there <= 0 or stated == there:
        return None
    if stated > there:
        whole = begin <= riff_end <= length + 1  # the RIFF's size is right, so nothing is missing
        return there if stated >= NOT_STATED or whole or stated - there <= SLACK_SECONDS * byte_rate else None
    behind = begin + stated + (stated & 1)
    if length - behind < 8 or _are_chunks(file, order, behind, length):
        return None
    if stated == 0:
        return there
    return min(there, riff_end - begin) if riff_end > behind + 8 else None  # else it is no part of the RIFF


def _are_chunks(file: IO[bytes], order: str, position: int, length: int) -> bool:
    """Whether chunks of a RIFF fill the file from here on."""
    while length - position >= 8:
        file.seek(position)
        head = file.read(8)
        size = struct.unpack(f"{order}I", head[4:])[0]
        if not all(32 <= byte < 127 for byte in head[:4]) or position + 8 + size > length:
            return False
        position += 8 + size + (size & 1)
    return True
