"""The local launcher: every node of a job is a group of processes on this machine.

    restarts = launch_local(job, say=print)      # raises StepFailed, or Cancelled on SIGTERM

A node sees what Kubeflow Trainer's torch runtime gives a pod: PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK,
PET_MASTER_ADDR and PET_MASTER_PORT. When one node fails, all of them are stopped and the whole job starts again, which
is what a JobSet does; an agent that restarts its own workers cannot bring the other nodes' collectives back.
"""

import collections
import contextlib
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psutil

from megatron_af.entry import Cancelled, cancellable
from megatron_af.pipeline.job import (
    GIVE_UP,
    ROOT,
    SHUTDOWN_SECONDS,
    Job,
    StepFailed,
    cause,
    describe_exit,
    python_env,
)
from megatron_af.pipeline.logs import last_error
from megatron_af.tracking.runs import SENDER

POLL_SECONDS = 0.1
PEER_GRACE_SECONDS = 10.0
"""How long the other nodes may take to end by themselves: the one that failed first may be the last to end, when its
launcher first stops the workers beside the one that died."""
PORTS = (20_000, 32_000)
STOP_SECONDS = SHUTDOWN_SECONDS + 30.0
"""From SIGTERM to SIGKILL where the job was asked to stop: time for the step under way and a checkpoint."""
FAILED_STOP_SECONDS = 30.0
"""The same for what is left of a job that has failed: its collectives may wait for those that are gone."""
MARK = "AF_PIPELINES_JOB"
"""Environment variable by which a job's processes are found: torchrun gives each worker a session of its own."""


class Node:
    """One node's process group, its output handed on line by line to ``read``."""

    def __init__(self, job: Job, rank: int, port: int, mark: str, read: Callable[[int, str], None]) -> None:
        env = {"OMP_NUM_THREADS": "1", **python_env(), **job.env, MARK: mark}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            env.pop(name, None)  # of a job this one was started from
        if job.distributed:
            env |= {
                "PET_NNODES": str(job.nodes),
                "PET_NPROC_PER_NODE": str(job.processes),
                "PET_NODE_RANK": str(rank),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(port),
            }
        self.rank = rank
        self.unread: Exception | None = None
        """What kept ``read`` from taking a line: nobody reads this program's output, or a log's disk is full."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "megatron_af.parallel.child", str(os.getpid()), *job.arguments(ROOT)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, args=(read,), daemon=True)
        self.reader.start()

    def _read(self, read: Callable[[int, str], None]) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            if self.unread is None:  # and read on in any case: a node whose pipe is full waits for ever
                try:
                    read(self.rank, line.rstrip())
                except Exception as error:
                    self.unread = error

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        """Wait for the last line. What a failed node left behind is killed with its group."""
        if self.process.wait():
            self.signal(signal.SIGKILL)
        self.reader.join(timeout=5)


def launch_local(job: Job, say: Callable[[str], None]) -> int:
    """Run a job to its end on this machine and return how often it was restarted.

    Raises `StepFailed` with the last error's text, `Cancelled` when this process was asked to stop, and what ``say``
    raises; a job that trains writes its checkpoint then. Nothing that was started is left running, not even when this
    process is killed.
    """
    deadline = time.monotonic() + job.deadline_seconds
    tail: collections.deque[str] = collections.deque(maxlen=2000)

    def read(rank: int, line: str) -> None:
        tail.append(line)
        say(f"[{job.name} {rank}] {line}" if job.nodes > 1 else f"[{job.name}] {line}")

    with cancellable():
        for restarts in range(job.max_restarts + 1):
            tail.clear()
            codes = _run_once(job, deadline, read)
            if not codes:
                return restarts
            rank, code = cause(codes)
            reason = last_error(tail) or "it printed no error"
            where = f"node {rank} {describe_exit(code)}" if job.nodes > 1 else describe_exit(code)
            if code in GIVE_UP:
                raise StepFailed(f"{job.name}: {where}, which no restart mends: {reason}", give_up=True)
            if restarts < job.max_restarts:
                say(f"[{job.name}] restart {restarts + 1} of {job.max_restarts}: {where}: {reason}")
        raise StepFailed(f"{job.name}: {where}, after {job.max_restarts} restarts: {reason}")


def _run_once(job: Job, deadline: float, read: Callable[[int, str], None]) -> list[tuple[int, int]]:
    """One try: (rank, exit code) of the nodes that failed by themselves, in the order they ended; empty: it is done."""
    port, mark = _free_port(), secrets.token_hex(16)
    nodes: list[Node] = []
    ended: list[Node] = []
    patience = FAILED_STOP_SECONDS
    try:
        nodes += [Node(job, rank, port, mark, read) for rank in range(job.nodes)]
        give_peers_until = float("inf")
        while len(ended) < len(nodes):
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            if any(node.unread for node in nodes):
                patience = STOP_SECONDS
                break
            for node in nodes:
                if node not in ended and node.process.poll() is not None:
                    ended.append(node)
                    if node.process.returncode:
                        give_peers_until = min(give_peers_until, now + PEER_GRACE_SECONDS)
            if now > give_peers_until:
                break
            if now > deadline:
                raise StepFailed(
                    f"{job.name}: not done after {job.deadline_seconds / 3600:.3g} h, its deadline; "
                    "raise deadline_hours in the cluster file, or train fewer steps",
                    give_up=True,
                )
    except Cancelled:
        patience = STOP_SECONDS
        raise
    finally:
        _stop(nodes, mark, patience)
    if unread := next((node.unread for node in nodes if node.unread), None):
        raise unread
    return [(node.rank, node.process.returncode) for node in ended if node.process.returncode]


def _stop(nodes: list[Node], mark: str, patience: float) -> None:
    """End every node and all that it started: SIGTERM, time to write a checkpoint, SIGKILL."""
    running = [node for node in nodes if node.process.poll() is None]
    for node in running:
        node.signal(signal.SIGTERM)
    until = time.monotonic() + patience
    for node in running:
        try:
            node.process.wait(timeout=max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            node.signal(signal.SIGKILL)
    left = _marked(mark)
    psutil.wait_procs(left, timeout=max(0.0, until - time.monotonic()))
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for node in nodes:
        node.close()


def _marked(mark: str) -> list[psutil.Process]:
    """Processes of a job that live, whoever their parent is by now; what only reports on one may outlive it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and SENDER not in process.cmdline():
                found.append(process)
    return found


def _free_port() -> int:
    """A port that nobody uses, below those that the kernel gives to outgoing connections.

    It takes seconds until torchrun listens there: one of the others would by then be someone's now and then.
    """
    while True:
        port = random.randrange(*PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
