"""The processes that compute together: one that was started alone, or those of torchrun.

    join_world()                 # at the head of a tool, before megatron-core is imported

A process that torchrun started ends with it, whatever happens to torchrun.
"""

import os
from datetime import timedelta

import torch.distributed as dist

from megatron_af.parallel.child import end_with
from megatron_af.parallel.device import current_device, make_megatron_portable

TIMEOUT = timedelta(minutes=30)
"""Of a collective, where nobody says more: ranks also wait while one of them builds an index or reads a data set. Torch
would give those over NCCL 10 minutes, and then end the process by a signal."""
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
BEHIND_SECONDS = 120.0
"""Time of a run that hangs to tell of it and end, before a collective gives up (``train/callbacks/hang.py``)."""


def patience(hang_seconds: float) -> timedelta:
    """How long a collective may take where ``launch.hang_seconds`` says what is a hang: long enough for the run to
    write its stacks before."""
    if not hang_seconds:
        return timedelta(days=365)
    return max(TIMEOUT, timedelta(seconds=hang_seconds + BEHIND_SECONDS))


def join_world(timeout: timedelta = TIMEOUT) -> None:
    """Join this process's peers in the default process group; megatron-core may be imported from here on.

    Args:
        timeout: of its collectives.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with(os.getppid())
    else:
        for name, value in ALONE.items():
            os.environ.setdefault(name, value)
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # All on this machine: gloo need not ask what the machine's name resolves to, which can take minutes.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    make_megatron_portable()
    dist.init_process_group(current_device().backend, timeout=timeout)
