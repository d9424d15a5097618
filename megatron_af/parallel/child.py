"""A command that does not outlive the process that started it, not even one that is killed.

    python -m megatron_af.parallel.child PARENT tool.py arguments …

PARENT is the process id of the starter. Linux kills this process when its parent ends, and keeps to that when the
command takes its place.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """From now on this process is killed when ``parent``, which started it, ends; at once if it has ended already."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed; this needs Linux")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
