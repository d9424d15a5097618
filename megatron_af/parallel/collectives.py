"""Two collectives that torch calls otherwise from 2.13 on, and warns of their older names.

    all_gather(everyones, own, group)
    reduce_scatter(own, everyones, group)
"""

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
