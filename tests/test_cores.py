"""Cores are those that a launcher and a container's limit leave, and what starts threads or processes heeds them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_af import cores
from megatron_af.parallel import device


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    for answer in (cores.usable_cores, device._heed_limit):
        answer.cache_clear()
    yield
    torch.set_num_threads(threads)
    for answer in (cores.usable_cores, device._heed_limit):
        answer.cache_clear()


def test_what_is_started_shares_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limited(monkeypatch, tmp_path, "", allowed=8)
    for processes, threads in ((2, "4"), (3, "2"), (16, "1")):
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        cores.share_cores(processes)
        assert os.environ["OMP_NUM_THREADS"] == threads


def limited(monkeypatch: pytest.MonkeyPatch, groups: Path, limit: str, allowed: int = 64) -> None:
    """As control groups of version 2 tell it, or, where no period is given, of version 1."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(allowed)))
    monkeypatch.setattr(cores, "GROUPS", groups)
    if " " in limit:
        (groups / "cpu.max").write_text(f"{limit}\n")
    elif limit:
        (groups / "cpu").mkdir()
        (groups / "cpu/cpu.cfs_quota_us").write_text(f"{limit}\n")
        (groups / "cpu/cpu.cfs_period_us").write_text("100000\n")


@pytest.mark.parametrize(
    ("allowed", "limit", "usable"),
    [(64, "", 64), (64, "max 100000", 64), (16, "max 100000", 16), (64, "400000 100000", 4), (2, "400000 100000", 2),
     (64, "50000 100000", 1), (64, "150000 100000", 2), (64, "-1", 64), (64, "400000", 4)],
)  # fmt: skip
def test_limits_of_a_launcher_and_of_a_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, allowed: int, limit: str, usable: int
) -> None:
    limited(monkeypatch, tmp_path, limit, allowed)
    assert cores.usable_cores() == usable


def test_torch_computes_on_those_unless_somebody_chose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limited(monkeypatch, tmp_path, "300000 100000")
    torch.set_num_threads(8)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    device.current_device()
    assert torch.get_num_threads() == 8
    device._heed_limit.cache_clear()
    monkeypatch.delenv("OMP_NUM_THREADS")
    device.current_device()
    assert torch.get_num_threads() == 3
    torch.set_num_threads(1)  # fewer, set later, stay
    device.current_device()
    assert torch.get_num_threads() == 1
