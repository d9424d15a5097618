"""Whether an MP3's header can be believed: what it states of the length against what the file holds.

    has_mp3_header(Path("talk.mp3"))        # False: nothing states a length, or a wrong one; measure it

MP3 has no header of its own. Encoders put one into a first frame that holds no sound (Xing's, called Info where every
frame has the same bit rate, or Fraunhofer's VBRI); programs that cut or join files leave it as it was.
"""

import io
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import IO

from dali_pipes.corrected import as_file

_BEHIND = 4096
"""Bytes behind an MP3 that its tags may take."""
_KILOBITS = (
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
)
"""Of layer III in MPEG-2 and in MPEG-1."""
_FEW_BYTES = 16_384
"""Of so few, tags and the first frame are too large a part for a rate to say anything."""
_PLACES, _PLACE_BYTES = 8, 4096
"""Where frames are looked at, and how much there: some ten frames of 128 kbit/s."""
_CONSTANT, _VARIABLE = 1.1, 1.4
"""Times that frames may be larger or smaller than those which were looked at: of one bit rate, and of many."""


def has_mp3_header(source: Path | bytes) -> bool:
    """Whether an MP3 states its length in a Xing, Info or VBRI frame that can be true, and ends where that says.

    Otherwise every program guesses it: without one, or of several MP3s one behind another.

    Raises:
        OSError: the file cannot be read.
    """
    with as_file(source) as file:
        head = file.read(10)
        tag = 0
        if head[:3] == b"ID3":  # sizes in an ID3 tag have 7 bits a byte
            tag = 10 + sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(head[6:10]))
        file.seek(tag)
        frame = file.read(4096)
        length = file.seek(0, io.SEEK_END)
        mark = next((found for name in (b"Xing", b"Info") if (found := frame.find(name)) >= 0), -1)
        if mark < 0:
            return b"VBRI" in frame
        fields, frames, size = (int.from_bytes(frame[at : at + 4], "big") for at in range(mark + 4, mark + 16, 4))
        if fields & 3 != 3 or not frames or not size or length > tag + size + _BEHIND:
            return False
        if size <= _FEW_BYTES or not (mean := _mean_frame(file, tag, min(size, length - tag))):
            return True
    most = _CONSTANT if frame[mark : mark + 4] == b"Info" else _VARIABLE
    return 1 / most <= size / frames / mean <= most


def _mean_frame(file: IO[bytes], begin: int, size: int) -> float:
    """Bytes of a frame in the mean, by some places of the file (which fall on large frames more often); 0 without."""
    means = []
    for place in range(_PLACES):
        file.seek(begin + size * place // _PLACES)
        if lengths := _frames(file.read(_PLACE_BYTES)):
            means.append(fmean(lengths))
    return harmonic_mean(means) if means else 0.0


def _frames(data: bytes) -> list[int]:
    """Lengths of the frames that stand in the bytes one behind another, from the first three in a row on."""
    at = data.find(b"\xff")
    while at >= 0:
        lengths, end = list[int](), at
        while length := _frame_bytes(data[end : end + 4]):
            lengths.append(length)
            end += length
        if len(lengths) > 2:
            return lengths
        at = data.find(b"\xff", at + 1)
    return []


def _frame_bytes(head: bytes) -> int:
    """Of the MP3 frame that begins with these four; 0 where none does, or its bit rate stands nowhere."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:  # layer III
        return 0
    version, bit_rate, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or rate == 3 or bit_rate in (0, 15):
        return 0
    whole = version == 3  # MPEG-1; the others halve and quarter its rates
    hz = (44_100, 48_000, 32_000)[rate] >> (0 if whole else 1 if version == 2 else 2)
    return (144_000 if whole else 72_000) * _KILOBITS[whole][bit_rate - 1] // hz + (head[2] >> 1 & 1)
