"""The short form of ``tests/faults/fuzz.py``, and that it finds what it is for."""

import os
import pickle
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import fuzz
from tests.faults.parsers import PARSERS, Parser

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", PARSERS)
def test_bytes_from_strangers_are_read_or_told_of(name: str) -> None:
    fuzz.run(name, 30, start=0)


def _decoded(folder: Path, data: bytes) -> None:
    data.decode()


def _beside(folder: Path, data: bytes) -> None:
    (folder.parent / "y").write_bytes(data)


def _called(folder: Path, data: bytes) -> None:
    pickle.loads(b"cos\nsystem\n(S'true'\ntR.")


def _ended(folder: Path, data: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (_decoded, "UnicodeDecodeError"),
        (_beside, "wrote .*/y"),
        (_called, r"a pickle asked for (os|posix)\.system; called os\.system"),
        (lambda folder, data: Path("/etc/passwd").read_text(), "read /etc/passwd"),
        (lambda folder, data: bytearray(90 << 20), r"took \d+ MiB for"),
        (lambda folder, data: print("Xing stream size off"), "printed 'Xing stream"),
        (_ended, "ended by SIGKILL"),
    ],
)
def test_what_a_parser_must_not_do_is_found(read: Callable[[Path, bytes], Any], told: str) -> None:
    with pytest.raises(fuzz.Unanswered) as found:
        fuzz.run("text", 20, start=0, parsers={"text": Parser(examples=[b"rain", b"wind"], read=read)})
    assert re.search(told, str(found.value)), found.value


def test_memory_is_seen_where_a_heap_has_room() -> None:
    """Blocks that were freed behind one that is held stay this process's, and its children's."""
    bytearray(31 << 20)  # freed: from now on the heap serves blocks of such a size
    held = [bytearray(30 << 20) for _ in range(4)]
    behind = bytearray(1 << 20)
    held.clear()
    parser = Parser(examples=[b"rain"], read=lambda folder, data: bytearray(90 << 20))
    with pytest.raises(fuzz.Unanswered, match=r"took \d+ MiB for"):
        fuzz.run("text", 3, start=0, parsers={"text": parser})
    assert behind


def _deep(folder: Path, data: bytes) -> None:
    """Bytes that are looked at one behind the other, as a format's marks are."""
    if data[:1] != b"{":
        return
    if data[1:2] != b"{":
        return
    if data[2:3] == b"[":
        raise KeyError("found")


def test_lines_lead_to_what_lies_behind_them(monkeypatch: pytest.MonkeyPatch) -> None:
    parsers = {"deep": Parser(examples=[b"rain"], read=_deep)}
    assert fuzz.run("deep", 5000, start=0, parsers=parsers).kept == 0
    monkeypatch.setattr(fuzz, "WATCHED", (__file__,))
    with pytest.raises(fuzz.Unanswered, match=r"KeyError.*found"):
        fuzz.run("deep", 5000, start=0, parsers=parsers)


def test_the_same_seed_makes_the_same_inputs() -> None:
    examples = [b'{"a": [1, {"b": "c"}]}\n', b"rain"]
    made = [[fuzz.edited(draw, examples) for _ in range(200)] for draw in map(random.Random, (3, 3, 4))]
    assert made[0] == made[1] != made[2]
