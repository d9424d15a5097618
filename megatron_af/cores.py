"""How many cores this process may use.

    workers = usable_cores()
    threads = cores_each(2)         # of two processes that share them
    share_cores(2)                  # and those that are started from here
"""

import math
import os
from functools import cache
from pathlib import Path

from megatron_af.foreign import read_text

GROUPS = Path("/sys/fs/cgroup")
"""A container's own limits, as the kernel's control groups tell them."""


@cache
def usable_cores() -> int:
    """Cores that the scheduler lets this process run on (taskset, Slurm) and that its container's limit pays for.

    Docker's ``--cpus`` and a pod's ``limits.cpu`` are a share of time on all of a machine's cores: who starts a thread
    for each of them stands still for most of every tenth of a second.
    """
    cores = len(os.sched_getaffinity(0))
    return min(cores, math.ceil(_paid_for() or cores))


def cores_each(processes: int) -> int:
    """Of so many processes that share the usable ones; at least one."""
    return max(1, usable_cores() // processes)


def share_cores(processes: int) -> None:
    """Let each of so many processes that are started from here compute with its part of the usable cores.

    One thread each, as a launcher has it, is for machines that do other work, too.
    """
    os.environ["OMP_NUM_THREADS"] = str(cores_each(processes))


def _paid_for() -> float:
    """Cores' worth of time in each period; 0 where there is no limit."""
    new, old = GROUPS / "cpu.max", GROUPS / "cpu/cpu.cfs_quota_us"  # versions 2 and 1
    if new.is_file():
        time, period = read_text(new).split()
    elif old.is_file():
        time, period = read_text(old), read_text(old.with_name("cpu.cfs_period_us"))
    else:
        return 0.0
    return 0.0 if time == "max" else max(0, int(time)) / int(period)
