"""What the machine under a measurement does in a second, and the group of one process that it runs in.

    with world() as groups: ...
    limit = operations / matmul_rate(device, 1024, torch.float32)
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from megatron_af.config import ParallelConfig
from megatron_af.parallel.world import join_world


def matmul_rate(device: torch.device, size: int, dtype: torch.dtype, repeats: int = 20) -> float:
    """Operations a second of ``size`` x ``size`` products; on the CPU a processor's second."""
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = one @ other
    now = clock(device)
    product.flatten()[0].item()  # waits for the product
    began = now()
    for _ in range(repeats):
        product = one @ other
    product.flatten()[0].item()
    return 2 * size**3 * repeats / (now() - began)


def copy_rate(device: torch.device, elements: int = 2**28, repeats: int = 20) -> float:
    """Bytes a second that an operation on single elements reads and writes."""
    one = torch.ones(elements, device=device, dtype=torch.bfloat16)
    now = clock(device)
    (one * 2.0)[0].item()
    began = now()
    for _ in range(repeats):
        other = one * 2.0
    other[0].item()
    return 2 * one.nbytes * repeats / (now() - began)


def clock(device: torch.device) -> Callable[[], float]:
    """Other programs share a CPU, and a GPU computes while the processor waits."""
    return time.process_time if device.type == "cpu" else time.perf_counter


@contextmanager
def world() -> Iterator[Any]:
    """megatron-core's groups of this process alone."""
    join_world()
    # Imported only now: megatron-core must have been made portable before its modules run.
    from megatron_af.parallel import groups

    try:
        yield groups.initialize(ParallelConfig(), 0)
    finally:
        groups.destroy()
        dist.destroy_process_group()
