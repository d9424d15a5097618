"""A function on several processes of this machine that talk over gloo: for proofs and tests, not for training.

    def main(rank: int, world_size: int, factor: int) -> int: ...
    results = run_distributed(main, 2, 3, timeout=60)      # one return value per rank

The processes are forked, so that the imports of the parent (torch, megatron-core: half a minute on a small
machine) are paid once. A rank that fails ends the others; nothing outlives the call.
"""

import contextlib
import datetime
import faulthandler
import gc
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_af.parallel.device import make_megatron_portable


class RankError(RuntimeError):
    """A rank raised, was killed, or did not finish in time; the message holds its traceback."""


def run_distributed(
    function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 90, **kwargs: Any
) -> list[Any]:
    """``[function(rank, world_size, *args, **kwargs) for rank in …]`` on that many forked processes.

    Return values travel through ``torch.save``: tensors, and containers and plain values around them.

    Raises:
        RankError: with the traceback of the first rank that failed, or after ``timeout`` seconds with the
            place where each rank hangs.
    """
    make_megatron_portable()
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.flush()
        sys.stderr.flush()
        ranks = [_fork(Path(folder), function, rank, world_size, timeout, args, kwargs) for rank in range(world_size)]
        problem = _wait(ranks, timeout)
        if problem:
            failed = sorted(Path(folder).glob("failed-*"), key=lambda path: path.stat().st_mtime)[:1]
            hanging = [path for path in sorted(Path(folder).glob("hanging-*")) if path.stat().st_size]
            problem = "\n".join([problem, *(f"{path.name}\n{path.read_text()}" for path in failed or hanging)])
            raise RankError(f"{function.__name__} on {world_size} ranks: {problem}")
        return [torch.load(Path(folder) / f"result-{rank}", weights_only=False) for rank in range(world_size)]


def _fork(
    folder: Path,
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    timeout: float,
    args: Any,
    kwargs: Any,
) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    # what the parent left uncollected (a DALI pipeline waits for threads that a fork does not copy) is not ours to end
    gc.freeze()
    try:
        os.setpgid(0, 0)
        faulthandler.register(signal.SIGUSR1, (folder / f"hanging-{rank}").open("w"), all_threads=False)
        torch.set_num_threads(1)
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
        store = dist.FileStore(str(folder / "store"), world_size)  # type: ignore[attr-defined]
        limit = datetime.timedelta(seconds=2 * timeout)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=limit)
        torch.save(function(rank, world_size, *args, **kwargs), folder / f"result-{rank}")
        if dist.is_initialized():
            dist.barrier()
        code = 0
    except BaseException as error:
        # a rank whose peer died reports only that: the peer's traceback is the one to read
        if "Connection closed by peer" not in str(error):
            (folder / f"failed-{rank}").write_text(traceback.format_exc())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(ranks: list[int], timeout: float) -> str:
    """Reaps all ranks, ends what is left after a failure or the time limit; returns what went wrong."""
    left, deadline, problem = set(ranks), time.monotonic() + timeout, ""
    while left and not problem:
        for pid in list(left):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                left.discard(pid)
                if status:
                    problem = f"rank {ranks.index(pid)} ended with code {os.waitstatus_to_exitcode(status)}"
        if time.monotonic() > deadline:
            problem = f"not finished within {timeout} s"
            for pid in left:
                os.kill(pid, signal.SIGUSR1)
        time.sleep(0.01)
    if problem and left:
        time.sleep(0.3)  # peers of a failed rank may still be writing the traceback that explains it
    for pid in ranks:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    for pid in left:
        os.waitpid(pid, 0)
    return problem
