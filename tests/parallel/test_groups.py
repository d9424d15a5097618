"""megatron-core's groups are global: they last as long as some model of the process lives in them."""

from typing import Any
from unittest.mock import patch

import pytest
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_af.config import ParallelConfig
from megatron_af.parallel import groups
from tests.distributed import run_distributed

pytestmark = pytest.mark.slow


def two_models(rank: int, world_size: int) -> list[bool]:
    found = []
    for change in (lambda: groups.initialize(ParallelConfig(), 0),) * 2 + (groups.destroy,) * 2:
        change()
        found.append(parallel_state.model_parallel_is_initialized())
    groups.initialize(ParallelConfig(), 0)
    found.append(parallel_state.model_parallel_is_initialized())
    groups.destroy()
    return found


def test_groups_end_with_the_last_model() -> None:
    assert run_distributed(two_models, 1) == [[True, True, True, False, True]]


def made(rank: int, world_size: int) -> tuple[list[list[int]], int]:
    """Ranks of the groups that a process makes by itself, and the size of what stands for it alone."""
    asked, new_group = [], dist.new_group

    def noted(ranks: list[int], *arguments: Any, **named: Any) -> Any:
        asked.append(ranks)
        return new_group(ranks, *arguments, **named)

    dist.new_group = noted
    with patch.object(groups.parallel_state, "initialize_model_parallel"), \
            patch.object(groups.parallel_state, "get_model_parallel_group"), \
            patch.object(groups.parallel_state, "get_data_parallel_group"), \
            patch.object(groups, "seed_streams"):
        found = [groups.initialize(ParallelConfig(), 0) for _ in range(2)]
    assert found[0].front.tp is found[1].front.tp
    return asked, dist.get_world_size(found[0].front.tp)


def test_each_rank_makes_its_own_group_once() -> None:
    """At 512 ranks nobody waits 512 times for all."""
    assert run_distributed(made, 3) == [([[rank]], 1) for rank in range(3)]
