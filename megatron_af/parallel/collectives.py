"""Two collectives that torch calls otherwise from 2.13 on, and warns of their older names; and what one rank finds out.

    all_gather(everyones, own, group)
    reduce_scatter(own, everyones, group)
    found = from_first(lambda: read(path))
"""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor


def all_gather(everyones: Tensor, own: Tensor, group: dist.ProcessGroup) -> None:
    """Fill ``everyones`` with the ranks' equally large tensors, one behind the other."""
    gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor
    gather(everyones, own, group=group)


def reduce_scatter(own: Tensor, everyones: Tensor, group: dist.ProcessGroup) -> None:
    """Fill ``own`` with this rank's part of the sum of the ranks' ``everyones``."""
    scatter = dist.reduce_scatter_single if hasattr(dist, "reduce_scatter_single") else dist.reduce_scatter_tensor
    scatter(own, everyones, group=group)


def from_first[Value](compute: Callable[[], Value]) -> Value:
    """What the world's first rank computes, on every rank; or raises, on every rank."""
    found: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            found[0] = compute()
        except Exception as error:
            found[1] = error
    dist.broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    value: Value = found[0]
    return value
