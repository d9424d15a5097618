"""A process that writes checkpoints while training goes on.

    writer = CheckpointWriter()                 # as soon as it is known that there will be checkpoints
    saves = Saves(writer)                       # megatron-core's queue of saves under way
    saves.schedule_async_request(request)       # returns when the tensors are copied

It is started once, as a program of its own: a process that holds a GPU's context and DALI's threads must not be forked,
and one that Python spawns would import the entry script anew. Tensors reach it in memory that both share and that stays
for the next save, so that a save costs training no more than a copy. It ends with the process that started it.
"""

import contextlib
import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCaller, AsyncCallsQueue, AsyncRequest

from megatron_af.train import checkpoint_files
from megatron_af.train.checkpoint_files import Bucket, Place

ALIGNED_BYTES = 64


class CheckpointWriter(AsyncCaller):
    """The process, seen from training; one save at a time."""

    def __init__(self) -> None:
        self._shared = os.memfd_create("checkpoint")
        self._memory: mmap.mmap | None = None
        self._busy = False
        ours, theirs = socket.socketpair()
        arguments = map(str, (os.getpid(), self._shared, theirs.fileno()))
        command = [sys.executable, "-m", checkpoint_files.__name__, *arguments]
        # Launchers signal whole process groups, and a SIGTERM asks for the last checkpoint: signals that are blocked
        # here stay blocked in a process started meanwhile.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
        try:
            self.process = subprocess.Popen(command, pass_fds=(self._shared, theirs.fileno()))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._messages = Connection(ours.detach())

    def schedule_async_call(self, async_req: AsyncRequest) -> None:
        """Copy the tensors, and have them written."""
        if async_req.async_fn is None:  # nothing of this checkpoint is this rank's
            return
        rank, buckets, _ = async_req.async_fn_args
        self._busy = True
        with contextlib.suppress(BrokenPipeError):  # it has ended, and is asked for its results soon
            self._messages.send((Path(buckets[0][0]).parent, rank, self._copied(buckets)))

    def is_current_async_call_done(self, blocking: bool = False, no_dist: bool = False) -> bool:
        """Whether every rank's files are written (``no_dist``: this one's)."""
        if self._busy and (blocking or self._messages.poll()):
            try:
                results = self._messages.recv()
            except (EOFError, ConnectionError):
                results = RuntimeError(f"the process that writes checkpoints ended with code {self.process.wait()}")
            results_queue().put(results)
            self._busy = False
        return not self._busy if no_dist else bool(self.sync_all_async_calls(int(self._busy)))

    def close(self, abort: bool = False) -> None:
        """End it: at once, or after what it writes."""
        if abort:
            self.process.kill()
        self._messages.close()
        self.process.wait()
        os.close(self._shared)

    def __del__(self) -> None:
        """Nothing: the process ends with this one. megatron-core's own raises, which is printed at every exit."""

    def _copied(self, buckets: Sequence[Bucket]) -> list[Bucket]:
        """The buckets with places in shared memory instead of tensors; waits for the copies."""
        places, end = [], 0
        tensors = [tensor for _, _, (_, pairs) in buckets for _, tensor in pairs]
        for tensor in tensors:
            places.append(Place(end, tensor.dtype, tensor.shape))
            end += -(-tensor.nbytes // ALIGNED_BYTES) * ALIGNED_BYTES
        if self._memory is None or len(self._memory) < end:
            os.ftruncate(self._shared, max(end, ALIGNED_BYTES))
            self._memory = mmap.mmap(self._shared, max(end, ALIGNED_BYTES))
        for tensor, place in zip(tensors, places, strict=True):
            place.of(self._memory).copy_(tensor, non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors):
            torch.cuda.synchronize()
        following = iter(places)
        return [
            (path, name, (data, [(item, next(following)) for item, _ in pairs]))
            for path, name, (data, pairs) in buckets
        ]


class Saves(AsyncCallsQueue):
    """megatron-core's queue of saves, with this writer."""

    def __init__(self, writer: CheckpointWriter) -> None:
        super().__init__()
        self._writer = writer

    def _get_async_caller(self) -> CheckpointWriter:
        return self._writer


def results_queue() -> Any:
    """Through which megatron-core learns what was written; it would start a process for it."""
    if filesystem_async._results_queue is None:
        filesystem_async._results_queue = queue.SimpleQueue()
    return filesystem_async._results_queue
