"""Recordings are the same until their content changes, and are read once."""

import os
from pathlib import Path

import pytest

from megatron_af.runs.recordings import KEPT, Recordings


def test_content_counts_and_nothing_else(tmp_path: Path) -> None:
    file, again = tmp_path / "a.wav", tmp_path / "elsewhere"
    file.write_bytes(b"0" * 200_000)
    recordings = Recordings(str(tmp_path), tmp_path / "runs")
    (before,) = recordings.digests(["a.wav"])
    os.utime(file, (0, 0))
    assert recordings.digests(["a.wav"]) == [before]
    again.mkdir()
    (again / "a.wav").write_bytes(file.read_bytes())
    assert Recordings(str(again), tmp_path / "other").digests(["a.wav"]) == [before], "on another machine"
    for content in (b"0" * 200_001, b"1" + b"0" * 199_999, b"0" * 100_000 + b"1" + b"0" * 99_999):
        file.write_bytes(content)
        assert recordings.digests(["a.wav"]) != [before]
    assert recordings.digests(["gone.wav", "../up.wav"]) == ["gone.wav missing", "../up.wav missing"]


def test_what_was_read_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        (tmp_path / f"{name}.wav").write_bytes(name.encode() * 1000)
    first = Recordings(str(tmp_path), tmp_path / "runs").digests(["a.wav", "b.wav"])
    recordings = Recordings(str(tmp_path), tmp_path / "runs")
    read: list[str] = []
    original = recordings._root.read
    monkeypatch.setattr(recordings._root, "read", lambda path, *where: (read.append(path), original(path, *where))[1])
    (tmp_path / "b.wav").write_bytes(b"c" * 1000)
    second = recordings.digests(["a.wav", "b.wav"])
    assert second[0] == first[0] and second[1] != first[1]
    assert set(read) == {"b.wav"}


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"0")
    (tmp_path / "runs").write_text("a file")
    assert len(Recordings(str(tmp_path), tmp_path / "runs").digests(["a.wav"])) == 1
    assert not (tmp_path / KEPT).exists()


def test_in_an_object_store_sizes_count(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"000")
    store = Recordings(f"file://{tmp_path}", tmp_path / "runs")
    assert store.digests(["a.wav", "gone.wav"]) == ["a.wav 3", "gone.wav missing"]
