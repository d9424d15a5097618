"""Gathering and scattering, in this torch and in one that has the older names alone."""

import warnings

import pytest
import torch
import torch.distributed as dist

from megatron_af.parallel.collectives import all_gather, from_first, reduce_scatter
from tests.distributed import run_distributed

pytestmark = pytest.mark.slow


def exchanged(rank: int, world_size: int, older: bool) -> tuple[list[float], list[float]]:
    if older:
        for name in ("all_gather_single", "reduce_scatter_single"):
            if hasattr(dist, name):
                delattr(dist, name)
    else:
        warnings.simplefilter("error", FutureWarning)
    everyones, own = torch.zeros(4), torch.zeros(2)
    all_gather(everyones, torch.tensor([rank, rank + 10.0]), dist.group.WORLD)
    reduce_scatter(own, torch.arange(4.0) + 100 * rank, dist.group.WORLD)
    return everyones.tolist(), own.tolist()


@pytest.mark.parametrize("older", [False, True])
def test_what_everyone_has_and_this_ranks_part_of_the_sum(older: bool) -> None:
    gathered = [0.0, 10.0, 1.0, 11.0]
    assert run_distributed(exchanged, 2, older) == [(gathered, [100.0, 102.0]), (gathered, [104.0, 106.0])]


def told(rank: int, world_size: int) -> tuple[int, str]:
    def fails() -> int:
        raise KeyError(f"rank {rank} has none")

    found = from_first(lambda: 7 + rank)
    try:
        from_first(fails)
    except KeyError as error:
        return found, str(error)
    return found, "nothing"


def test_what_the_first_rank_finds_out_or_fails_by_is_everyones() -> None:
    assert run_distributed(told, 2) == [(7, "'rank 0 has none'")] * 2
