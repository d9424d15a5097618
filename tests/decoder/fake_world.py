"""Process groups of many ranks in one process, for models that are only counted."""

import contextlib
from collections.abc import Iterator

import torch.distributed as dist
from megatron.core import parallel_state
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_af.config import ParallelConfig

FIRST_ADDED_ID = 151_665


@contextlib.contextmanager
def fake_world(parallel: ParallelConfig, rank: int) -> Iterator[None]:
    """This process plays one rank of a layout whose other ranks do not exist."""
    if dist.is_initialized():
        dist.destroy_process_group()
    world = parallel.tensor * parallel.pipeline
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    parallel_state.initialize_model_parallel(parallel.tensor, parallel.pipeline, create_gloo_process_groups=False)
    yield
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


class NoRandomStates:
    """In place of megatron-core's tracker of random states: fake tensors have none, and nothing here is random."""

    def fork(self, *args: object) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()
