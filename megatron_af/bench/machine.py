"""What the machine under a measurement does in a second, and the group of one process that it runs in.

    with world() as groups: ...
    limit = operations / matmul_rate(device, 1024, torch.float32)
"""

import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_af.config import ParallelConfig
from megatron_af.parallel.device import current_device
from megatron_af.parallel.world import join_world

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, LARGE, GROWN = -3, -1, 1 << 16, 1 << 25
"""glibc's numbers for the size from which a block is the system's own, and for what its heap keeps; what
:func:`peak_mib` sets the first to; and where glibc lets it grow to by itself, with twice as much kept."""
_FORGET = Path("/proc/self/clear_refs")
"""Linux forgets a process's peak when 5 is written to it."""


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


def peak_mib(work: Callable[[], object]) -> float:
    """Memory that work takes at its peak, beyond what was held before; 0 where the system does not tell.

    On the CPU each large block is the system's own meanwhile: a heap would still hold what others gave back.
    """
    device = current_device()
    if device.is_gpu:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    if not _FORGET.exists():
        return 0.0
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, LARGE)
    device.return_freed_memory()
    try:
        peak = os.open(_FORGET, os.O_WRONLY)
        os.write(peak, b"5")
        os.close(peak)
        held = _kib("VmRSS")
        work()
        return (_kib("VmHWM") - held) / 1024
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, GROWN)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * GROWN)


def _kib(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


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
        gc.collect()  # a model and its gradient buffers hold each other: before there is another one
