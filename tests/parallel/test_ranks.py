"""A function on several processes: their results in order, the first one's traceback, and where they hang."""

import time

import pytest
import torch
import torch.distributed as dist

from megatron_af.parallel.ranks import RankError, run_distributed

pytestmark = pytest.mark.slow


def total(rank: int, world_size: int, factor: int) -> tuple[int, float]:
    number = torch.tensor(float(factor * (rank + 1)))
    dist.all_reduce(number)
    return rank, number.item() / world_size


def breaks(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ValueError("rank 1 alone")
    dist.barrier()


def hangs(rank: int, world_size: int) -> None:
    time.sleep(60 * rank)


def test_results_stand_in_the_order_of_ranks() -> None:
    assert run_distributed(total, 2, 10) == [(0, 15.0), (1, 15.0)]


def test_a_rank_that_fails_is_named_with_its_traceback() -> None:
    with pytest.raises(RankError, match=r"breaks on 2 ranks: (?s:.*)ValueError: rank 1 alone"):
        run_distributed(breaks, 2)


def test_a_rank_that_hangs_is_ended_and_its_place_told() -> None:
    began = time.monotonic()
    with pytest.raises(RankError, match=r"not finished within 8 s(?s:.*)in hangs"):
        run_distributed(hangs, 2, timeout=8)
    assert time.monotonic() - began < 50
