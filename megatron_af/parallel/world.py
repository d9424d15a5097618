"""The processes that compute together: one that was started alone, or those of torchrun.

    join_world()                 # at the head of a tool, before megatron-core is imported

A process that torchrun started ends with it, whatever happens to torchrun.
"""

import os

import torch.distributed as dist

from megatron_af.parallel.child import end_with
from megatron_af.parallel.device import current_device, make_megatron_portable

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def join_world() -> None:
    """Join this process's peers in the default process group; megatron-core may be imported from here on."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with(os.getppid())
    else:
        for name, value in ALONE.items():
            os.environ.setdefault(name, value)
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # All on this machine: gloo need not ask what the machine's name resolves to, which can take minutes.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    make_megatron_portable()
    dist.init_process_group(current_device().backend)
