"""Two processes never write one stage's folder, and a dead one holds nobody up."""

import contextlib
import errno
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_af.runs import lock
from megatron_af.runs.lock import FILE, StageBusy, StageLock, after_others, ensure_free, ensure_kept


def _hold(folder: Path, entered: Any) -> None:
    with StageLock(folder):
        entered.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    context = multiprocessing.get_context("fork")
    entered = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "align", entered))
    process.start()
    assert entered.wait(10)
    yield process
    process.kill()
    process.join()


@pytest.mark.slow
def test_a_second_process_is_refused_by_name_and_a_dead_one_is_not_waited_for(tmp_path: Path, holder: Any) -> None:
    with pytest.raises(StageBusy, match=rf"being written by process {holder.pid} on"), StageLock(tmp_path / "align"):
        pass
    with pytest.raises(StageBusy):
        ensure_free(tmp_path / "align")
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    ensure_free(tmp_path / "align")
    with StageLock(tmp_path / "align"):
        assert json.loads((tmp_path / "align" / FILE).read_text())["pid"] == os.getpid()
    assert [file.name for file in (tmp_path / "align").iterdir()] == []


@pytest.mark.slow
def test_a_dead_holder_that_nobody_has_waited_for_is_dead(tmp_path: Path, holder: Any) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # until it has ended, and leave it as it is
    assert Path(f"/proc/{holder.pid}/stat").is_file()
    with StageLock(tmp_path / "align"):
        pass


@pytest.mark.slow
def test_a_folder_is_waited_for_and_held_after_its_holder(
    tmp_path: Path, holder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "WAIT_SECONDS", 0.01)
    told: list[str] = []
    threading.Timer(0.5, holder.kill).start()
    with after_others(tmp_path / "align", told.append):
        assert json.loads((tmp_path / "align" / FILE).read_text())["pid"] == os.getpid()
    (line,) = told
    assert line.endswith(f"is being written by process {holder.pid} on {socket.gethostname()}: waiting for it")
    assert [file.name for file in (tmp_path / "align").iterdir()] == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_nobodys(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock, "write", refuse)
    full = number == errno.ENOSPC
    with pytest.raises(OSError) if full else contextlib.nullcontext(), after_others(tmp_path, print):
        assert not full


def test_a_process_of_the_same_number_is_another(tmp_path: Path) -> None:
    with StageLock(tmp_path):
        held = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(held | {"began": "1"}))
    ensure_free(tmp_path)


def elsewhere(folder: Path, age: float) -> None:
    holder = {"pid": 7, "host": "another-node", "token": "theirs", "began": "5"}
    (folder / FILE).write_text(json.dumps(holder))
    os.utime(folder / FILE, (time.time() - age,) * 2)


def test_a_holder_on_another_node_counts_until_it_stops_renewing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(tmp_path, age=lock.LOST_SECONDS / 2)
    with pytest.raises(StageBusy, match="process 7 on another-node"):
        ensure_free(tmp_path)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.1)
    elsewhere(tmp_path, age=lock.LOST_SECONDS + 1)
    with StageLock(tmp_path):
        ensure_kept(tmp_path)


@pytest.mark.parametrize("age", [-3600.0, 3600.0], ids=["back", "forward"])
def test_a_clock_that_jumps_neither_ends_a_holder_nor_keeps_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float
) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.4)
    elsewhere(tmp_path, age)
    renewal = threading.Timer(0.3, os.utime, (tmp_path / FILE, (time.time() - age + 20,) * 2))
    renewal.start()
    with pytest.raises(StageBusy, match="process 7 on another-node"):
        ensure_free(tmp_path)
    renewal.join()
    elsewhere(tmp_path, age)
    ensure_free(tmp_path)


def test_a_holder_renews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
    with StageLock(tmp_path):
        os.utime(tmp_path / FILE, (0, 0))
        until = time.monotonic() + 10
        while (tmp_path / FILE).stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.02)
        assert (tmp_path / FILE).stat().st_mtime > 0


def test_who_lost_it_does_not_go_on_and_leaves_the_next_one_alone(tmp_path: Path) -> None:
    with StageLock(tmp_path):
        elsewhere(tmp_path, age=0)
        with pytest.raises(StageBusy, match="taken over by another process"):
            ensure_kept(tmp_path)
    assert json.loads((tmp_path / FILE).read_text())["token"] == "theirs"
    ensure_kept(tmp_path)  # of a folder that this process does not hold it says nothing


def test_a_renewal_that_fails_is_not_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries, renewed = iter(range(100)), threading.Event()

    def utime(path: Path) -> None:
        if next(tries) == 0:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        renewed.set()

    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lock.os, "utime", utime)
    with StageLock(tmp_path):
        assert renewed.wait(10)


def test_two_who_wait_for_a_dead_one_do_not_trip_over_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the dead one left has gone by the time it is removed."""
    mkdir, tries = Path.mkdir, iter(range(100))

    def taken(folder: Path, *more: Any, **named: Any) -> None:
        if folder.name.endswith(".taking") and next(tries) == 0:
            raise FileExistsError
        mkdir(folder, *more, **named)

    monkeypatch.setattr(Path, "mkdir", taken)
    monkeypatch.setattr(lock, "LOST_SECONDS", -1.0)
    with StageLock(tmp_path):
        pass
