"""The processes of a run, forked from one that has imported what they need: a start takes seconds, not half a minute.

    launch(2, ["--standalone", "--nproc_per_node=2", "tests/faults/watched.py", "--config", …])

The launcher, its ranks and their writers of checkpoints are the processes that they always are: children of one another
that run the same code, in sessions of their own, and end by the same signals. Only their modules are there already. A
process that has threads must not be forked, so each forks those it will need before it begins (``Reserve``).
"""

import contextlib
import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import numpy as np
import torch
from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

from megatron_af.parallel.child import end_with
from megatron_af.parallel.device import make_megatron_portable
from megatron_af.pipeline import torchrun

BYTES = 1 << 20
"""Of an environment and arguments at most."""


class Forked:
    """A child, as ``subprocess.Popen`` shows one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout: IO[str] | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork(main: Callable[[], int | None]) -> int:
    """A child's process id; it runs ``main``, exits with what that returns, and ends with this process."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    if pid := os.fork():
        return pid
    code = 70
    try:
        end_with(parent)
        gc.freeze()
        random.seed()  # whoever draws without a seed draws something else each time, as a new process would
        np.random.seed()
        torch.seed()
        code = main() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Reserve:
    """A child that waits to be told its arguments."""

    def __init__(self, main: Callable[[list[str]], int | None]) -> None:
        self._ours, theirs = socket.socketpair()

        def waiting() -> int | None:
            self._ours.close()
            told, handles, _, _ = socket.recv_fds(theirs, BYTES, 8)
            theirs.close()
            if not told:  # the process that it was for ended well
                return 0
            order = json.loads(told)
            moved = [os.dup(handle) for handle in handles]  # out of each other's way
            for handle, wanted in zip(moved, order["handles"], strict=True):
                os.dup2(handle, wanted)
            os.environ.clear()
            os.environ.update(order["environment"])
            return main(order["arguments"])

        self._pid = fork(waiting)
        theirs.close()

    def begin(self, arguments: Sequence[str], environment: dict[str, str], handles: Sequence[int] = ()) -> Forked:
        order = {"arguments": list(arguments), "environment": environment, "handles": list(handles)}
        socket.send_fds(self._ours, [json.dumps(order).encode()], handles)
        self._ours.close()
        return Forked(self._pid)


def launch(processes: int, arguments: Sequence[str]) -> Forked:
    """``python -m megatron_af.pipeline.torchrun`` with these arguments; its output can be read."""
    reading, writing = os.pipe()

    def launcher() -> int:
        os.close(reading)
        os.setsid()
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        ranks = [Reserve(_rank) for _ in range(processes)]

        def start(handler: SubprocessHandler, command: tuple[str, ...], environment: dict[str, str]) -> Forked:
            return ranks.pop(0).begin(command, environment)

        SubprocessHandler._popen = start  # type: ignore[method-assign, assignment]
        return torchrun.main(list(arguments))

    child = Forked(fork(launcher))
    os.close(writing)
    child.stdout = os.fdopen(reading)
    return child


def _rank(command: list[str]) -> int:
    """What torchrun starts: ``python … -m megatron_af.parallel.child PARENT -u SCRIPT arguments``."""
    os.setsid()
    from megatron_af.train import checkpoint_writer
    from tests.faults import watched

    writer = Reserve(_writer)

    def start(command: Sequence[str], pass_fds: Sequence[int]) -> Forked:
        return writer.begin(command, dict(os.environ), pass_fds)

    checkpoint_writer.subprocess = SimpleNamespace(Popen=start)  # type: ignore[assignment]
    place = command.index("megatron_af.parallel.child") + 1
    end_with(int(command[place]))
    sys.argv = command[place + 2 :]
    return watched.main()


def _writer(command: list[str]) -> None:
    """What a rank starts: ``python -m megatron_af.train.checkpoint_files PARENT MEMORY CONNECTION``."""
    from megatron_af.train import checkpoint_files

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
    parent, memory, messages = map(int, command[3:])
    end_with(parent)
    with contextlib.suppress(ConnectionError):
        checkpoint_files.serve(memory, Connection(messages))


def prepare() -> None:
    """Import what the processes need, once, without starting a thread."""
    torch.set_num_threads(1)  # whatever OMP_NUM_THREADS says
    make_megatron_portable()
    import megatron_af.plan.beside
    import megatron_af.plan.check
    import megatron_af.tracking.callback
    import megatron_af.train.callbacks
    import megatron_af.train.checkpoint_writer
    import megatron_af.train.stage_result
    import megatron_af.train.trainer  # noqa: F401
    import tests.faults.watched  # noqa: F401

    until = time.monotonic() + 60
    while lost := [name for name in _threads() if name != "jemalloc_bg_thd"]:  # which knows of forks
        assert time.monotonic() < until, f"threads that a fork would lose: {lost}; OMP_NUM_THREADS=1 has none"
        time.sleep(0.1)  # a new one bears this process's name until it first runs


def _threads() -> list[str]:
    """Names of this process's threads but the main one."""
    tasks = sorted(Path("/proc/self/task").iterdir(), key=lambda task: int(task.name) != os.getpid())
    return [(task / "comm").read_text().strip() for task in tasks[1:]]
