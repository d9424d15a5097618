"""Weights as safetensors files, in shards where they are large: ``model.safetensors``, or an index and its parts.

    write_shards(folder, tensors)            # tensors: (name, tensor), one after another
    file_of = tensor_files(folder)           # name -> file of the folder that holds it, as its index says
    file = open_weights(path)                # one file, whose tensors are read when they are sliced

Only one shard is in memory at a time, however large the model is. Names are transformers' own, which
``from_pretrained`` looks for. What is read comes from elsewhere: an index may name what is not there, and a file may be
a pointer, a web page, cut off, or hold numbers that mean nothing without others.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_af.files import appearing, write
from megatron_af.foreign import ForeignError, described, file_at, head_of, read_json

SHARD_BYTES = 5_000_000_000
INDEX = "model.safetensors.index.json"
WHOLE = ("F64", "F32", "F16", "BF16")
"""Kinds of numbers that are weights by themselves; of others (FP8, packed integers) a scale stands elsewhere."""


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


def tensor_files(folder: Path) -> dict[str, str]:
    """Name of each tensor -> name of the file in ``folder`` that holds it.

    Raises:
        FileNotFoundError: there are no weights, or not all files that the index names.
        ForeignError: the index is none, or names what its files do not hold.
    """
    index, single = folder / INDEX, folder / "model.safetensors"
    if not index.is_file():
        if not single.is_file():
            raise FileNotFoundError(
                f"{folder}: expected model.safetensors or {INDEX}; "
                "save the model with save_pretrained(..., safe_serialization=True)"
            )
        return dict.fromkeys(open_weights(single).keys(), single.name)
    content = read_json(index)
    file_of = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(file_of, dict) or not all(isinstance(name, str) for name in file_of.values()):
        raise ForeignError(f"{index} has no weight_map of tensors and their files")
    for name in sorted(set(file_of.values())):
        if Path(name).name != name:
            raise ForeignError(f"{index} names {name}, which is no file of its own folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{index} names {name}, which is missing: fetch it again")
        held = set(open_weights(folder / name).keys())
        if lost := sorted(tensor for tensor, file in file_of.items() if file == name and tensor not in held):
            raise ForeignError(
                f"{index} says that {name} holds {lost[0]}, which it does not: index and weights are of two models, "
                "fetch both again"
            )
    return file_of


def open_weights(path: Path) -> Any:
    """A safetensors file.

    Raises:
        ForeignError: it is something else, broken, or quantised; the message names the file.
    """
    try:
        file: Any = safe_open(file_at(path), framework="pt")
        for name in file.keys():  # noqa: SIM118  # a handle, no mapping
            kind = file.get_slice(name).get_dtype()
            counts = kind.startswith(("I", "U", "BOOL")) and "weight" not in name.rpartition(".")[2]  # positions, masks
            if kind not in WHOLE and not counts:
                break
        else:
            return file
    except SafetensorError as error:
        known = described(head_of(path)) or f"is no whole safetensors file ({error}): fetch it again"
        raise ForeignError(f"{path} {known}") from None
    raise ForeignError(
        f"{path}: {name} is quantised ({kind}), and its scales are left out by whoever reads it as weights; take the "
        "model's release in BF16, FP16 or FP32"
    )
