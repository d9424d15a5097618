"""Process groups of a run: megatron-core's own, and two more for the audio side.

The audio side (encoder, transformation layers, rows of added tokens) is replicated on every rank and sees a
different share of the step's clips on each, so to megatron-core it is a model whose data-parallel group is the
whole world and whose tensor- and pipeline-parallel groups hold this rank alone.

    groups = initialize(config.parallel, config.seed)
"""

import math
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from megatron_af.config import ParallelConfig
from megatron_af.parallel.world import TIMEOUT


@dataclass(frozen=True, kw_only=True)
class Groups:
    model: dist.ProcessGroup
    """Ranks that hold one copy of the decoder (tensor x pipeline); they share the encoding of its clips."""
    data: dist.ProcessGroup
    front: ProcessGroupCollection
    """megatron-core's view of the audio side: data parallel over the world, nothing else."""

    @property
    def model_rank(self) -> int:
        return dist.get_rank(self.model)

    @property
    def model_size(self) -> int:
        return self.model.size()

    @property
    def data_rank(self) -> int:
        return dist.get_rank(self.data)

    @property
    def data_size(self) -> int:
        return self.data.size()


def seed_streams(number: int) -> None:
    """Start megatron-core's random streams: one that tensor-parallel ranks share, and one of each's own.

    The default stream moves, too.
    """
    model_parallel_cuda_manual_seed(number, force_reset_rng=True)


_users = 0
"""Models of this process that live in megatron-core's groups, which are global."""
_alone: dist.ProcessGroup | None = None
"""This rank; made and forgotten with megatron-core's groups."""


def initialize(parallel: ParallelConfig, seed: int, timeout: timedelta = TIMEOUT) -> Groups:
    """Make every group of the run, or join what another model of this process made. The default group must exist.

    Args:
        parallel: layout; its product must divide the world size (checked by ``validate`` before any group).
        seed: start of megatron-core's tensor-parallel random streams.
        timeout: of collectives; whole minutes.
    """
    if parallel_state.model_parallel_is_initialized():
        # A second model in this process: what answers, and what finds its examples.
        present = (
            parallel_state.get_tensor_model_parallel_world_size(),
            parallel_state.get_pipeline_model_parallel_world_size(),
        )
        assert present == (parallel.tensor, parallel.pipeline), "models of one process share their layout"
    else:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor,
            pipeline_model_parallel_size=parallel.pipeline,
            virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
            distributed_timeout_minutes=math.ceil(timeout / timedelta(minutes=1)),
        )
    global _users, _alone
    _users += 1
    seed_streams(seed)
    world = dist.group.WORLD
    if _alone is None:
        # by its one member: as a collective, every rank would wait for all of them once for every rank
        _alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    front = ProcessGroupCollection(
        dp=world,
        dp_cp=world,
        intra_dist_opt=world,
        tp=_alone,
        pp=_alone,
        mp=_alone,
        cp=_alone,
        ep=_alone,
        tp_ep_pp=_alone,
        # Without the expert groups megatron-core makes them itself, with different ranks on different processes.
        expt_dp=_alone,
        expt_tp=_alone,
        # None says "no tied embedding here"; an absent attribute would be an error.
        embd=None,
        pos_embd=None,
    )
    return Groups(
        model=parallel_state.get_model_parallel_group(),
        data=parallel_state.get_data_parallel_group(),
        front=front,
    )


def destroy() -> None:
    """Undo one :func:`initialize`; the last one forgets the groups. The default process group stays.

    Neither megatron-core nor this ends them: what they hold (threads, over NCCL memory of the GPU) is given back with
    the process. Who has one model after the other initializes once more around all of them.
    """
    global _users, _alone
    _users -= 1
    if not _users:
        parallel_state.destroy_model_parallel()
        _alone = None
