"""The spool takes records at any time and gives every whole one back."""

import os
import threading
import time
from pathlib import Path

import pytest

from megatron_af.tracking.spool import Address, Sent, Spool, read_spool, spool_key

ADDRESS = Address(uri="http://127.0.0.1:9", experiment="e", name="n")


def steps(folder: Path) -> list[int]:
    return [record["step"] for record, _ in read_spool(folder) if record["kind"] == "metrics"]


def test_a_record_torn_by_a_kill_costs_itself_only(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.metrics(1, {"loss": 2.0})
    with spool.file.open("ab") as file:
        file.write(b'{"kind":"metrics","step":2,"val')
    assert steps(tmp_path) == [1]
    again = Spool(tmp_path)
    again.metrics(3, {"loss": 1.0})
    assert steps(tmp_path) == [1, 3]
    assert again.last_step() == 3


@pytest.mark.parametrize("left", [b"\0" * 4096, b'{"kind":"metrics","step":2,"values":{"lo\xff\xfe'])
def test_what_a_crash_of_the_machine_leaves_costs_itself_only(tmp_path: Path, left: bytes) -> None:
    """A file has its new length before its data are on the disk: zero bytes stand in their place."""
    spool = Spool(tmp_path)
    spool.metrics(1, {"loss": 2.0})
    with spool.file.open("ab") as file:
        file.write(left)
    Spool(tmp_path).metrics(3, {"loss": 1.0})
    assert steps(tmp_path) == [1, 3]


def test_a_torn_record_is_no_logged_step(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.metrics(1, {"loss": 2.0})
    with spool.file.open("ab") as file:
        file.write(b'{"kind":"metrics","step":2,"val')
    assert Spool(tmp_path).last_step() == 1


def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in range(5):
        spool.metrics(step, {"loss": float(step)})
    offsets = [offset for _, offset in read_spool(tmp_path)]
    assert [record["step"] for record, _ in read_spool(tmp_path, offsets[2])] == [3, 4]


def test_not_a_number_and_odd_names_survive(tmp_path: Path) -> None:
    Spool(tmp_path).metrics(0, {"loss/Music (AVQA)": float("nan"), "grad_norm": float("inf")})
    ((record, _),) = read_spool(tmp_path)
    assert list(record["values"]) == ["loss/Music _AVQA_", "grad_norm"]
    assert record["values"]["loss/Music _AVQA_"] != record["values"]["loss/Music _AVQA_"]


def test_two_writers_never_mix_their_lines(tmp_path: Path) -> None:
    def write(first: int) -> None:
        spool = Spool(tmp_path)
        for step in range(first, first + 500):
            spool.metrics(step, {f"metric_{i}": 1.0 for i in range(50)})

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(steps(tmp_path)) == list(range(1000))


def test_the_key_stays(tmp_path: Path) -> None:
    Spool(tmp_path)
    key = spool_key(tmp_path)
    Spool(tmp_path)
    assert key and spool_key(tmp_path) == key


def test_a_full_disk_warns_once_and_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.warns(UserWarning, match="No space left") as caught:
        spool.metrics(1, {"loss": 1.0})
        spool.metrics(2, {"loss": 1.0})
    assert len(caught) == 1


def test_a_record_that_the_disk_had_no_room_for_costs_itself_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, whole = Spool(tmp_path), os.write
    spool.metrics(1, {"loss": 1.0})
    monkeypatch.setattr(os, "write", lambda handle, line: whole(handle, line[:20]))
    with pytest.warns(UserWarning, match="No space left"):
        spool.metrics(2, {"loss": 1.0})
    monkeypatch.setattr(os, "write", whole)
    spool.metrics(3, {"loss": 1.0})
    spool.metrics(4, {"loss": 1.0})
    assert steps(tmp_path) == [1, 3, 4]


def test_a_step_costs_microseconds(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    record = {f"gate_attn/{layer}": 0.1 for layer in range(72)}
    start = time.perf_counter()
    for step in range(200):
        spool.metrics(step, record)
    assert (time.perf_counter() - start) / 200 < 5e-3


def test_address_and_progress_survive_a_restart(tmp_path: Path) -> None:
    assert Sent.load(tmp_path) == Sent()
    Sent(uri="u", run_id="r", offset=7).save(tmp_path)
    assert Sent.load(tmp_path) == Sent(uri="u", run_id="r", offset=7)
    spool = Spool(tmp_path)
    spool.open(ADDRESS, params={}, tags={}, texts={})
    assert Address.load(tmp_path).session == spool.session
