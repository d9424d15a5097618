"""Rates count operations and bytes, and a group of one is left as it was entered."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_af.bench import machine
from megatron_af.bench.machine import copy_rate, matmul_rate, peak_mib, world
from tests.distributed import run_distributed


class Ticks:
    """A second at every look."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_rates_count_what_was_done_in_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "clock", lambda device: Ticks())
    device = torch.device("cpu")
    assert matmul_rate(device, 64, torch.float32, repeats=3) == 2 * 64**3 * 3
    assert copy_rate(device, elements=2**10, repeats=5) == 2 * 2 * 2**10 * 5, "read and written, two bytes each"


def test_peak_is_what_was_held_at_once_and_given_back() -> None:
    def work() -> None:
        for _ in range(3):
            held = torch.ones(8 << 20)  # 32 MiB
        del held
        torch.ones(1 << 20)

    assert 60 < peak_mib(work) < 80, "the next is made while one is held"
    assert 60 < peak_mib(work) < 80, "again, whatever was held before"


def alone(rank: int, world_size: int) -> Any:
    dist.destroy_process_group()
    with world() as groups:
        size = groups.data_size
    return size, dist.is_initialized()


@pytest.mark.slow
def test_the_world_is_one_process_and_ends() -> None:
    assert run_distributed(alone, 1) == [(1, False)]
