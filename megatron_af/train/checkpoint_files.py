"""The files of a checkpoint, written in the process that trains or in one of its own.

    python -m megatron_af.train.checkpoint_files PARENT MEMORY CONNECTION       # ``checkpoint_writer.py`` starts it

It knows nothing of models, and imports torch alone. Tensors of the other process lie in memory that both share.
"""

import contextlib
import json
import mmap
import os
import queue
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import SerializationFormat, _StorageWriterTransforms, _write_item

from megatron_af.files import write
from megatron_af.parallel.child import end_with
from megatron_af.runs.digests import digest_files

type Bucket = tuple[str, str, tuple[list[Any], list[tuple[Any, Any]]]]
"""Of one file, in megatron-core's words: its path, its name, and what goes into it; tensors with what they are."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the shared memory."""

    begin: int
    dtype: torch.dtype
    shape: torch.Size

    def of(self, memory: mmap.mmap) -> Tensor:
        flat = torch.frombuffer(memory, dtype=self.dtype, count=self.shape.numel(), offset=self.begin)
        return flat.view(self.shape)


def write_and_digest(folder: Path, rank: int, buckets: Sequence[Bucket], results: Any) -> None:
    """Write a rank's files, and note what their digests are.

    Args:
        results: a queue; told what megatron-core wants to know of each file, or the error.
    """
    try:
        with ThreadPoolExecutor(max_workers=max(1, len(buckets))) as threads:
            written = dict(enumerate(threads.map(_write_file, buckets)))
    except Exception as error:  # torch tells of a full disk in words of its own, behind the system's
        causes: list[BaseException] = [error]
        while causes[-1].__context__ is not None:
            causes.append(causes[-1].__context__)
        results.put(RuntimeError(str(next((cause for cause in causes if isinstance(cause, OSError)), error))))
        return
    own = [file.name for file in folder.glob(f"__{rank}_*")]
    with contextlib.suppress(OSError):  # of a note alone, the first rank digests
        write(note_of(folder, rank), json.dumps(digest_files(folder, own)))
    results.put(written)


def _write_file(bucket: Bucket) -> list[Any]:
    path, name, (data, pairs) = bucket
    transforms = _StorageWriterTransforms()
    with Path(path).open("wb") as stream:
        written = [
            _write_item(transforms, stream, content, item, name, SerializationFormat.TORCH_SAVE)
            for item, content in (*data, *pairs)
        ]
        os.fsync(stream.fileno())
    return written


def note_of(folder: Path, rank: int) -> Path:
    """Where a rank says what the digests of its files are."""
    return folder / f".digests_{rank}.json"


def serve(shared: int, messages: Connection) -> None:
    """Write what comes, until nothing can come any more: who trained may be killed, with an answer unread."""
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            folder, rank, buckets = messages.recv()
            memory = mmap.mmap(shared, os.fstat(shared).st_size)
            found = [
                (path, name, (data, [(item, place.of(memory)) for item, place in pairs]))
                for path, name, (data, pairs) in buckets
            ]
            results: queue.SimpleQueue[Any] = queue.SimpleQueue()
            write_and_digest(folder, rank, found, results)
            messages.send(results.get())


if __name__ == "__main__":
    parent, shared_memory, connection = map(int, sys.argv[1:])
    end_with(parent)
    serve(shared_memory, Connection(connection))
