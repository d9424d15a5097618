"""A recording, be it a file or the bytes of one, as it is and as if its header were right.

    with as_file(source) as file: ...
    with correction.opened(source) as file: ...
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from megatron_af.foreign import opened


def as_file(source: Path | bytes) -> IO[bytes]:
    """
    Raises:
        OSError: it cannot be opened.
    """
    return io.BytesIO(source) if isinstance(source, bytes) else opened(source)


class BytesOfFile(io.BytesIO):
    """As a file on a disk: a broken header may ask for what lies before its beginning, and is not answered."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


@dataclass(frozen=True)
class Correction:
    """The true size of a recording, where its header states another."""

    place: int
    """Byte of the size in the header."""
    size: bytes
    """What must stand there."""
    note: str

    def opened(self, source: Path | bytes) -> IO[bytes]:
        """The file as if its header were right."""
        if isinstance(source, bytes):
            return BytesOfFile(source[: self.place] + self.size + source[self.place + len(self.size) :])
        return io.BufferedReader(_Overlaid(source, self))


class _Overlaid(io.RawIOBase):
    """A file in which some bytes are others."""

    def __init__(self, path: Path, correction: Correction) -> None:
        self._file = path.open("rb", buffering=0)
        self._correction = correction

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        begin = self._file.tell()
        count = self._file.readinto(buffer) or 0
        place, size = self._correction.place, self._correction.size
        for i, byte in enumerate(size):
            if 0 <= place + i - begin < count:
                buffer[place + i - begin] = byte
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()
