"""A file is read as if other bytes stood in it, by whatever pieces it is read."""

import io
from pathlib import Path

import pytest

from dali_pipes.corrected import BytesOfFile, Correction

CONTENT = bytes(range(64))
RIGHT = CONTENT[:20] + b"right" + CONTENT[25:]


@pytest.mark.parametrize("piece", [1, 3, 7, 64])
def test_the_bytes_stand_where_they_must(tmp_path: Path, piece: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(CONTENT)
    correction = Correction(20, b"right", "a note")
    for source in (path, CONTENT):
        with correction.opened(source) as file:
            assert b"".join(iter(lambda opened=file: opened.read(piece), b"")) == RIGHT
            for begin in range(len(RIGHT)):
                assert file.seek(begin) == file.tell() == begin and file.read(piece) == RIGHT[begin : begin + piece]
            file.seek(-len(CONTENT), io.SEEK_END)
            assert file.read() == RIGHT and file.seekable()
    assert path.read_bytes() == CONTENT


def test_what_lies_before_the_beginning_is_not_answered() -> None:
    file = BytesOfFile(b"abc")
    assert file.seek(2) == 2 and file.seek(-1) == 2 and file.seek(-9, io.SEEK_CUR) in (0, 2)
    assert file.seek(1 << 80) == file.tell()
