"""Measure how fast the processes of a job exchange tensors, before a long training relies on it.

    torchrun --standalone --nproc_per_node 2 tools/measure_network.py

On a cluster `af-pipelines smoke` runs it on two nodes.
"""

import argparse
import sys

from megatron_af.entry import command, importing

MIB = 2**20


@command
def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with importing():
        import torch.distributed as dist  # a command answers at once

        from megatron_af.bench.network import measure, pinned_memory_limit
        from megatron_af.parallel.device import current_device
        from megatron_af.parallel.world import join_world

        device = current_device()
        join_world()

    first = dist.get_rank() == 0
    if first:
        print(f"{dist.get_world_size()} processes, {device.backend}, pinned memory {pinned_memory_limit()}", flush=True)
    sizes = [MIB, 16 * MIB, 256 * MIB, 1024 * MIB] if device.is_gpu else [MIB, 4 * MIB]
    for result in measure(device.torch, sizes):
        if first:
            print(result, flush=True)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
