"""Weights as safetensors files, in shards where they are large: ``model.safetensors``, or an index and its parts.

    write_shards(folder, tensors)            # tensors: (name, tensor), one after another

Only one shard is in memory at a time, however large the model is. Names are transformers' own, which
``from_pretrained`` looks for.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_af.files import appearing, write

SHARD_BYTES = 5_000_000_000
INDEX = "model.safetensors.index.json"


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> None:
    """Write what comes, in its order; a tensor larger than ``shard_bytes`` has a shard to itself.

    The folder belongs to the writer: it appears under its name when all is in it.
    """
    shards: list[dict[str, int]] = []  # of each shard: name -> bytes
    pending: dict[str, Tensor] = {}

    def flush() -> None:
        if pending:
            with appearing(_part(folder, len(shards))) as draft:
                save_file(pending, draft, metadata={"format": "pt"})
                draft.chmod(0o644)  # the library makes it unreadable for others
            shards.append({name: tensor.nbytes for name, tensor in pending.items()})
            pending.clear()

    for name, tensor in tensors:
        if sum(waiting.nbytes for waiting in pending.values()) + tensor.nbytes > shard_bytes:
            flush()
        # Of its own memory: what it was cut from may be let go of, and a file holds no two views of one storage.
        pending[name] = tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
    flush()
    if len(shards) == 1:
        _part(folder, 0).rename(folder / "model.safetensors")
        return
    where: dict[str, str] = {}
    for number, shard in enumerate(shards):
        name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        _part(folder, number).rename(folder / name)
        where |= dict.fromkeys(shard, name)
    total = sum(size for shard in shards for size in shard.values())
    write(folder / INDEX, json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2) + "\n")


def _part(folder: Path, number: int) -> Path:
    return folder / f"model-{number + 1:05d}.safetensors"
