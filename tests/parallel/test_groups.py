"""megatron-core's groups are global: they last as long as some model of the process lives in them."""

import pytest
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
