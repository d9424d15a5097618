"""The state of a ZeRO-1 optimizer, parameter by parameter, without any rank holding all of it.

    for parameter, tensors in whole_states(optimizer): …    # those that this rank writes; a collective
    for parameter, (begin, end), _ in held(optimizer): …    # those that it holds a part of, and reads

Each data-parallel rank holds one stretch of every bucket's elements. Most parameters lie in the stretch of one rank;
one that lies in several is sent to the rank that holds most of it. So a rank's share of a checkpoint is about as large
as its share of the state, in memory and in bytes written, and it reads no parameters but those it holds a part of.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")

type Range = tuple[int, int]
"""Of elements of a parameter: the first one, and the one behind the last."""


def held_ranges(optimizer: DistributedOptimizer) -> Iterator[tuple[nn.Parameter, list[Range]]]:
    """Every parameter, with the elements of it that each data-parallel rank holds; the same on all of those ranks."""
    ranks = optimizer.data_parallel_group.size()
    for buffer in optimizer.buffers:
        for parameter, (start, end, bucket_id) in buffer.param_index_map.items():
            bucket = buffer.buckets[bucket_id]
            share = bucket.grad_data.numel() // ranks
            begins = [bucket.offset + rank * share - start for rank in range(ranks)]
            length = end - start
            yield parameter, [(min(max(begin, 0), length), min(max(begin + share, 0), length)) for begin in begins]


def held(optimizer: DistributedOptimizer) -> Iterator[tuple[nn.Parameter, Range, bool]]:
    """The parameters that this rank holds a part of: which part, and whether it is the one that this rank writes."""
    own = optimizer.data_parallel_group.rank()
    for parameter, ranges in held_ranges(optimizer):
        if ranges[own][0] < ranges[own][1]:
            yield parameter, ranges[own], _writer(ranges) == own


def _writer(ranges: Sequence[Range]) -> int:
    """The rank that holds most of a parameter."""
    sizes = [end - begin for begin, end in ranges]
    return sizes.index(max(sizes))


def whole_states(optimizer: DistributedOptimizer) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Parameters whose state this rank writes, with their tensors; a collective of the data-parallel ranks."""
    group = optimizer.data_parallel_group
    own = group.rank()
    for parameter, ranges in held_ranges(optimizer):
        begin, end = ranges[own]
        if begin == end:
            continue
        parts = parts_of(optimizer, parameter)
        if end - begin == parameter.numel():  # the tensors themselves: for a second state a GPU may have no room
            yield parameter, {name: part.detach().view(parameter.shape) for name, part in parts.items()}
            continue
        part_NT = torch.stack([part.detach().flatten() for part in parts.values()])
        if own != (writer := _writer(ranges)):
            dist.send(part_NT, dist.get_global_rank(group, writer), group)
            continue
        whole_NT = part_NT.new_empty(len(parts), parameter.numel())
        whole_NT[:, begin:end] = part_NT
        for rank, (begin, end) in enumerate(ranges):
            if rank != own and begin < end:
                other_NT = part_NT.new_empty(len(parts), end - begin)
                dist.recv(other_NT, dist.get_global_rank(group, rank), group)
                whole_NT[:, begin:end] = other_NT
        yield parameter, {name: x_T.view(parameter.shape) for name, x_T in zip(parts, whole_NT, strict=True)}


def parts_of(optimizer: DistributedOptimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """This rank's part of a parameter's state, flat and in float32; the tensors themselves.

    Returns:
        ``exp_avg`` and ``exp_avg_sq``, and ``master`` where the parameter itself is not float32.
    """
    state = optimizer._get_main_param_and_optimizer_states(parameter)
    parts = {moment: state[moment] for moment in MOMENTS}
    return parts if parameter.dtype == torch.float32 else parts | {"master": state["param"]}
