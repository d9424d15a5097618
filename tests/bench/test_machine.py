"""Rates count operations and bytes, and a group of one is left as it was entered."""

import gc
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_af.bench import machine
from megatron_af.bench.learning import Learning, configuration
from megatron_af.bench.machine import copy_rate, matmul_rate, world
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


PEAK = """
import torch
from megatron_af.bench.machine import peak_mib

def work():
    for _ in range(3):
        held = torch.ones(8 << 20)  # 32 MiB
    del held
    torch.ones(1 << 20)

print(peak_mib(work), peak_mib(work))
"""


@pytest.mark.slow
def test_peak_is_what_was_held_at_once_and_given_back() -> None:
    """In a process of its own: what other tests hold, the system may take back meanwhile."""
    told = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True).stdout
    for peak in map(float, told.split()):
        assert 60 < peak < 80, "the next is made while one is held; the second time as the first"


def alone(rank: int, world_size: int) -> Any:
    dist.destroy_process_group()
    with world() as groups:
        size = groups.data_size
    return size, dist.is_initialized()


def after_a_model(rank: int, world_size: int) -> Any:
    dist.destroy_process_group()
    gc.disable()  # it comes when it likes
    with world() as groups:
        learning = Learning(configuration(64), groups)
        held = [weakref.ref(weight) for _, weight in learning.model.named_parameters()]
        del learning
    return sum(weight() is not None for weight in held), len(held)


@pytest.mark.slow
def test_a_model_is_gone_before_there_is_another() -> None:
    ((left, weights),) = run_distributed(after_a_model, 1)
    assert left == 0 < weights


@pytest.mark.slow
def test_the_world_is_one_process_and_ends() -> None:
    assert run_distributed(alone, 1) == [(1, False)]
