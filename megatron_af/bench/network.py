"""How fast the processes of a job exchange tensors: all-reduce by size, as its "bus bandwidth".

    for result in measure(device, sizes=[2**20, 2**28]): print(result)

Bus bandwidth is what nccl-tests call so: bytes x 2 (n - 1) / n / seconds for n processes, the traffic of each one's
slowest link, comparable with the link's own speed whatever n is.
"""

import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

WARM_UP, REPEATS = 5, 20


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """All-reduces of one size over all processes."""

    num_bytes: int
    seconds: float
    """Of one, the mean."""
    processes: int

    @property
    def bus_bytes_per_second(self) -> float:
        return self.num_bytes / self.seconds * 2 * (self.processes - 1) / self.processes

    def __str__(self) -> str:
        size = f"{self.num_bytes / 2**20:8.0f} MiB"
        return f"{size}  {1e3 * self.seconds:9.3f} ms  {self.bus_bytes_per_second / 1e9:8.2f} GB/s bus"


def measure(device: torch.device, sizes: Sequence[int]) -> Iterator[Exchange]:
    """Time all-reduces of float32 tensors of ``sizes`` bytes; every process of the job must take part."""
    processes = dist.get_world_size()
    for size in sizes:
        values = torch.ones(size // 4, device=device)
        for _ in range(WARM_UP):
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        _wait(device)
        began = time.perf_counter()
        for _ in range(REPEATS):
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        _wait(device)
        yield Exchange(num_bytes=size, seconds=(time.perf_counter() - began) / REPEATS, processes=processes)


def pinned_memory_limit() -> str:
    """What this process may pin, which network adapters need: ``unlimited``, or a number of KiB that is too small."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return "unlimited" if soft == resource.RLIM_INFINITY else f"{soft // 1024} KiB (adapters need it unlimited)"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    dist.barrier()
