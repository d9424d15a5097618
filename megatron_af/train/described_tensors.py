"""A look at ``.metadata``, megatron-core's description of a checkpoint's tensors, before anything believes it.

    with only_tensors(checkpoint):            # raises CheckpointError, naming what the file asks for
        dist_checkpointing.load(state, checkpoint)

The file is a pickle, which torch reads by ``pickle.load``: whatever it names is called. It is kept, since megatron-core
and others read no other form, but it may name the classes that describe tensors and nothing else. Small objects stand
in the tensor files as pickles of their own: within the block torch builds no class from these either.
"""

import contextlib
import io
import os
import pickle
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from megatron_af.foreign import read_bytes
from megatron_af.runs.paths import CheckpointError

METADATA = ".metadata"
_METADATA_OF_TORCH = "torch.distributed.checkpoint.metadata"
_PLANNER = "torch.distributed.checkpoint.planner"
KNOWN = {
    _METADATA_OF_TORCH: {
        "_MEM_FORMAT_ENCODING", "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex",
        "StorageMeta", "TensorProperties", "TensorStorageMetadata",
    },
    _PLANNER: {"SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))},
}  # fmt: skip
"""Module -> what of it describes tensors, places in files and plans of writing."""
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class _Describing(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in KNOWN.get(module, ()):
            raise CheckpointError(f"asks for {module}.{name}, which describes no tensor")
        return super().find_class(module, name)


def _refuse_far_places(data: bytes) -> None:
    """The library keeps a value at whatever place a pickle names, and takes the memory up to there: gigabytes."""
    for step, place, _ in pickletools.genops(data):
        if step.name in ("PUT", "BINPUT", "LONG_BINPUT") and (place or 0) > len(data):
            raise CheckpointError(f"keeps a value at place {place:,} of {len(data):,} bytes")


@contextlib.contextmanager
def only_tensors(checkpoint: Path) -> Iterator[None]:
    """Inside, loading this checkpoint builds tensors and their descriptions alone.

    Raises:
        CheckpointError: ``.metadata`` is missing, broken, or asks for something else; nothing of it was run.
    """
    file = checkpoint / METADATA
    try:
        data = read_bytes(file)
        _refuse_far_places(data)
        if not isinstance(_Describing(io.BytesIO(data)).load(), Metadata):
            raise TypeError("no description of tensors")
    except FileNotFoundError as missing:
        raise CheckpointError(f"checkpoint {checkpoint} is not whole, it has no {METADATA}: take another") from missing
    except CheckpointError as refused:
        raise CheckpointError(
            f"{file} {refused}: it was not written by a checkpoint, and nothing in it was run; bring back the original"
        ) from None
    except Exception as broken:  # of damaged bytes any may come
        raise CheckpointError(f"{file} cannot be read ({type(broken).__name__}); take another checkpoint") from broken
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before
