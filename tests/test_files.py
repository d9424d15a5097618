"""A file or folder is the old one or the new one, at every moment and with any number of writers."""

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_af import files
from megatron_af.files import appearing, append, put_in_place, require_room, settled, sweep, write


def test_a_file_is_replaced_and_its_folder_made(tmp_path: Path) -> None:
    place = tmp_path / "a/b/c.txt"
    write(place, "one")
    write(place, b"two")
    assert place.read_text() == "two"
    assert [file.name for file in place.parent.iterdir()] == ["c.txt"]


def test_a_writer_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    place = tmp_path / "c.txt"
    write(place, "old")
    with pytest.raises(RuntimeError), appearing(place) as draft:
        draft.write_text("half")
        assert place.read_text() == "old"
        raise RuntimeError
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


def _write_for_ever(place: Path, letter: str) -> None:
    while True:
        write(place, letter * 100_000)


@pytest.mark.slow
def test_many_writers_and_a_kill_never_show_half_a_file(tmp_path: Path) -> None:
    place = tmp_path / "c.txt"
    write(place, "z" * 100_000)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_for_ever, args=(place, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    until, seen = time.monotonic() + 1.0, set()
    while time.monotonic() < until:
        text = place.read_text()
        assert len(text) == 100_000 and len(set(text)) == 1
        seen.add(text[0])
    for writer in writers:
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
    assert seen & {"a", "b"}
    text = place.read_text()
    assert len(text) == 100_000 and len(set(text)) == 1
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [place]


def folder_of(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "x").write_text(text)
    return path


def test_a_folder_takes_anothers_place(tmp_path: Path) -> None:
    place = tmp_path / "index"
    put_in_place(folder_of(tmp_path / "p1", "one"), place)
    put_in_place(folder_of(tmp_path / "p2", "two"), place)
    assert (place / "x").read_text() == "two"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("dies_at", [1, 2, 3])
def test_a_death_at_any_rename_loses_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int) -> None:
    place = folder_of(tmp_path / "index", "old")
    steps = 0
    rename, rmtree = Path.rename, files.shutil.rmtree

    def die() -> None:
        nonlocal steps
        steps += 1
        if steps == dies_at:
            raise KeyboardInterrupt

    def dying_rename(self: Path, target: Path) -> Path:
        die()
        return rename(self, target)

    def dying_rmtree(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            die()
            rmtree(path)

    monkeypatch.setattr(Path, "rename", dying_rename)
    monkeypatch.setattr(files.shutil, "rmtree", dying_rmtree)
    with pytest.raises(KeyboardInterrupt):
        put_in_place(folder_of(tmp_path / "partial", "new"), place)
    monkeypatch.undo()
    assert (settled(place) / "x").read_text() == ("new" if dies_at == 3 else "old")
    put_in_place(folder_of(tmp_path / "again", "newest"), place)
    assert (place / "x").read_text() == "newest"


@contextmanager
def little_room() -> Iterator[None]:
    """The system refuses the bytes of any file behind its 4096th."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_a_disk_does_not_take_is_told_with_the_files_name(tmp_path: Path) -> None:
    place, log = tmp_path / "report.html", tmp_path / "skipped.jsonl"
    write(place, "old")
    append(log, "one\n")
    with little_room(), pytest.raises(OSError, match=r"File too large: '.*report\.html'"):
        write(place, "x" * 5000)
    assert place.read_text() == "old"
    with little_room(), pytest.raises(OSError, match=r"File too large: '.*skipped\.jsonl'"):
        append(log, "x" * 5000)
    assert log.read_text().startswith("one\n") and sorted(tmp_path.iterdir()) == [place, log]
    for writer in (append, write):
        with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
            writer(Path("/dev/full"), "x")


def test_room_is_looked_for_and_nothing_is_left(tmp_path: Path) -> None:
    require_room(tmp_path / "a" / "b")
    require_room(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        require_room(tmp_path / "file")


def test_appending_makes_the_folder_and_whole_lines(tmp_path: Path) -> None:
    append(tmp_path / "a/b.jsonl", "one\n")
    append(tmp_path / "a/b.jsonl", b"two\n")
    assert (tmp_path / "a/b.jsonl").read_text() == "one\ntwo\n"


def test_a_device_or_pipe_stays_what_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write(pipe, "numbers")
    assert os.read(reader, 100) == b"numbers" and pipe.is_fifo()
    os.close(reader)
    (tmp_path / "partial").mkdir()
    with pytest.raises(NotADirectoryError, match="expected a folder"):
        put_in_place(tmp_path / "partial", pipe)
    assert pipe.is_fifo() and (tmp_path / "partial").is_dir()


@pytest.mark.parametrize("writer", [append, write])
def test_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path: Path, writer: Callable[[Path, str], None]) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(OSError, match="No such device or address"):
        writer(tmp_path / "a", "text")


def test_no_name_is_told_of() -> None:
    with pytest.raises(IsADirectoryError, match="expected the name of a file to write"):
        write(Path(), "text")
