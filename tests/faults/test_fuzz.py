"""The short form of ``tests/faults/fuzz.py``, and that it finds what it is for."""

from pathlib import Path

import pytest

from tests.faults import fuzz


@pytest.mark.parametrize("name", fuzz.PARSERS)
def test_bytes_from_strangers_are_read_or_told_of(name: str) -> None:
    fuzz.run(name, 30, start=0)


def test_a_parser_that_raises_what_is_not_ours_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(folder: Path, data: bytes) -> None:
        data.decode()

    monkeypatch.setitem(fuzz.PARSERS, "text", ([b"rain", b"wind"], parse))
    with pytest.raises(fuzz.Unanswered, match="UnicodeDecodeError"):
        fuzz.run("text", 300, start=0)


def test_a_parser_that_writes_elsewhere_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fuzz.PARSERS, "text", ([b"a"], lambda folder, data: (folder.parent / "y").write_bytes(data)))
    with pytest.raises(AssertionError, match="outside of its folder"):
        fuzz.run("text", 30, start=0)
