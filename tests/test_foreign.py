"""What is said about a file that is not what it should be."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megatron_af.foreign import (
    ForeignError,
    decoded,
    described,
    file_at,
    head_of,
    is_litter,
    no_file,
    opened,
    parse_json,
    read_bytes,
    read_json,
    read_record,
    read_text,
    shown,
)


def test_what_a_file_is() -> None:
    assert described(b"") == "is empty"
    assert "git lfs pull" in described(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "download failed" in described(b"\n <!doctype HTML>\n<html>")
    assert described(b"PK\x03\x04rest") == "is compressed (zip): unpack it"
    assert "AppleDouble" in described(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    assert "zero bytes" in described(bytes(9))
    assert described(b"hello\nworld") == "is text ('hello')"
    assert described(b"RIFF\x00\x01\x02\x80WAVE") == ""
    assert shown(b"\xff" * 90) == "'" + "\ufffd" * 40 + "...'"


def test_litter() -> None:
    assert all(map(is_litter, ("__MACOSX/a/b.wav", "a/._b.wav", "a/.DS_Store", "Thumbs.db")))
    assert not any(map(is_litter, ("a/b.wav", "a/.hidden.wav", "MACOSX/a.wav", "a._b.wav")))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a": 1,}', "t.json is not JSON: illegal trailing comma|t.json is not JSON: expecting"),
        (b'[1,\n2\n3]', "in line 3, column 1"),
        (b"<html>404</html>", "t.json is a web page"),
        (b"", "t.json is empty"),
        (b'{"a": "\xe9"}', "t.json is not UTF-8 .byte 7."),
        (b"[" * 200_000, "nested too deeply"),
        (b"9" * 5_000, "cannot be read"),
    ],
)  # fmt: skip
def test_json_that_is_none(data: bytes, words: str) -> None:
    with pytest.raises(ForeignError, match=words):
        parse_json(data, "t.json")


def test_json_with_a_mark_or_of_two_bytes_a_letter_is_read() -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert parse_json('{"a": "é"}'.encode(encoding), "t.json") == {"a": "é"}


@dataclass(frozen=True, kw_only=True)
class Record:
    steps: int


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "record.json is empty"),
        (b'{"steps": 3', "record.json is not JSON: expecting ',' delimiter in line 1, column 12"),
        (b"{}", "record.json is no Record of this version: missing 1 required keyword-only argument: 'steps'"),
        (b'{"steps": 3, "x": 1}', "record.json is no Record of this version: got an unexpected keyword argument 'x'"),
        (b"[1]", "record.json is no Record of this version"),
    ],
)
def test_a_record_that_is_broken_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "record.json"
    file.write_bytes(b'{"steps": 3}')
    assert read_record(Record, file) == Record(steps=3) and read_json(file) == {"steps": 3}
    file.write_bytes(content)
    with pytest.raises(ForeignError) as error:
        read_record(Record, file)
    assert words in str(error.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"x")
    assert no_file(tmp_path / "pipe") == "a pipe" and no_file(tmp_path) == "a folder"
    assert no_file(Path("/dev/null")) == "a device"
    assert no_file(tmp_path / "file") == no_file(tmp_path / "gone") == no_file(tmp_path / ("x" * 999)) == ""
    assert head_of(tmp_path / "pipe") == b""


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"PAR1\x15\x04\xff", "is Parquet: write what it holds as CSV, JSON or JSON Lines"),
        (b"SQLite format 3\x00\x10", "is an SQLite database"),
        (b"PK\x03\x04\x14\x00[Content_Types].xml", "save it as CSV"),
    ],
)
def test_rows_that_are_no_text_are_called_by_their_name(head: bytes, words: str) -> None:
    assert words in described(head)
    with pytest.raises(ForeignError, match=f"t.csv {re.escape(described(head))}"):
        decoded(head, "t.csv")


@pytest.mark.parametrize("read", [opened, read_bytes, read_text, read_json, file_at, head_of])
def test_a_pipe_is_not_waited_for(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    os.mkfifo(tmp_path / "a.json")
    if read is head_of:
        assert head_of(tmp_path / "a.json") == b""
        return
    with pytest.raises(ForeignError, match=r"a\.json is a pipe, no file"):
        read(tmp_path / "a.json")
    with pytest.raises(ForeignError, match="is a device, no file"):
        read(Path("/dev/zero"))
    (tmp_path / "a").mkdir()
    if read is not file_at:
        with pytest.raises(IsADirectoryError):
            read(tmp_path / "a")


def test_text_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffré\r\nn".encode())
    (tmp_path / "b").touch()
    assert read_text(tmp_path / "a") == "ré\nn"
    assert read_text(tmp_path / "b") == ""
