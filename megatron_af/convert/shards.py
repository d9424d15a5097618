"""Weights as safetensors files, in shards where they are large: ``model.safetensors``, or an index and its parts.

    write_shards(folder, tensors)            # tensors: (name, tensor), one after another
    file_of = tensor_files(folder)           # name -> file of the folder that holds it, as its index says
    file = open_weights(path)                # one file, whose tensors are read when they are sliced
    part = Held(path, name, file.get_slice(name))[:8]      # which are numbers that can be computed with

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

from megatron_af.convert.keys import pickled_weights
from megatron_af.files import appearing, write
from megatron_af.foreign import ForeignError, described, file_at, head_of, no_file, read_json

SHARD_BYTES = 5_000_000_000
INDEX = "model.safetensors.index.json"
INDEXES = (INDEX, "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin")
"""Names that transformers gives, by preference: OPT was released in the second ones."""
COUNTER = "num_batches_tracked"
"""What alone is a whole number among the weights of a model."""
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
        ForeignError: the index is none, names what its files do not hold, or says nothing of other weights beside it.
    """
    index = next((folder / name for name in INDEXES if (folder / name).is_file()), None)
    single = next((folder / name for name in SINGLE if (folder / name).is_file()), None)
    if index is None:
        if single is None:
            raise FileNotFoundError(f"{folder}: expected {SINGLE[0]} or {INDEX}, {instead(folder)}")
        return dict.fromkeys(open_weights(single).keys(), single.name)
    content = read_json(index)
    named = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise ForeignError(f"{index} has no weight_map of tensors and their files")
    if index.name == INDEX and single is not None and single.name == SINGLE[0] and single.name not in named.values():
        raise ForeignError(
            f"{folder} holds {single.name} and an index that does not name it: they are two models, and some programs "
            f"read the one, some the other; move {single.name} or {INDEX} with its files away"
        )
    file_of: dict[str, str] = {}
    for name in sorted(set(named.values())):
        if Path(name).name != name:
            raise ForeignError(f"{index} names {name}, which is no file of its own folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{index} names {name}, which is missing: fetch it again")
        held = set(open_weights(folder / name).keys())
        if lost := sorted(tensor for tensor, file in named.items() if file == name and tensor not in held):
            raise ForeignError(
                f"{index} says that {name} holds {lost[0]}, which it does not: index and weights are of two models, "
                "fetch both again"
            )
        if twice := sorted(held & file_of.keys()):
            raise ForeignError(
                f"{folder}: {file_of[twice[0]]} and {name} both hold {twice[0]}: they are of two models, fetch all "
                "files again"
            )
        file_of |= dict.fromkeys(held, name)
    return file_of


def instead(folder: Path) -> str:
    """What there is in a folder that lacks a model's files, and what to do about it."""
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    if found := next((name for name in names if name in SINGLE and not (folder / name).is_file()), None):
        return f"got {found}, which is {no_file(folder / found) or 'a link to nothing'}: fetch it again"
    names = [name for name in names if name not in SINGLE]
    ends: dict[str, str] = {
        "adapter_model.safetensors": "which holds adapters alone: merge them into their model "
        "(peft's merge_and_unload) and save that",
        ".gguf": "which is quantised or renamed for llama.cpp: take the model's release as safetensors",
        ".incomplete": "a download that broke off: fetch it again",
        ".safetensors": "and no index that says which of them are the model's: fetch that, too",
    }
    for end, why in ends.items():
        if found := next((name for name in names if name.endswith(end)), None):
            return f"got {found}, {why}"
    return "which is not there; fetch the whole model, or save it by save_pretrained(folder)"


def open_weights(path: Path) -> Any:
    """A safetensors file, or one of ``torch.save``: ``keys()``, ``get_slice(name)`` and ``get_tensor(name)``.

    Raises:
        ForeignError: it is something else, broken, or quantised; the message names the file.
    """
    if path.suffix == ".bin":
        return _Pickled(path)
    try:
        file: Any = safe_open(file_at(path), framework="pt")
        for name in file.keys():  # noqa: SIM118  # a handle, no mapping
            kind = file.get_slice(name).get_dtype()
            counts = kind.startswith(("I", "U", "BOOL")) and "weight" not in name.rpartition(".")[2]  # positions, masks
            if kind not in WHOLE and not counts:
                break
        else:
            return file
    except SafetensorError:
        known = described(head_of(path)) or "is no whole safetensors file: fetch it again"
        raise ForeignError(f"{path} {known}") from None
    raise ForeignError(
        f"{path}: {name} is quantised ({kind}), and its scales are left out by whoever reads it as weights; take the "
        "model's release in BF16, FP16 or FP32"
    )


class _Pickled:
    """A file of ``torch.save`` as safetensors' handles are; its tensors stay on the disk until they are read."""

    def __init__(self, path: Path) -> None:
        self._held = pickled_weights(path)

    def keys(self) -> list[str]:
        return list(self._held)

    def get_tensor(self, name: str) -> Tensor:
        return self._held[name]

    get_slice = get_tensor


class Held:
    """One tensor of somebody else's weights, of which parts can be had that are finite numbers.

    Args:
        where: the file or folder that holds it.
        tensor: a slice of safetensors, or a tensor.
    """

    def __init__(self, where: Path | str, name: str, tensor: Any) -> None:
        self._where, self._name, self._tensor = where, name, tensor

    def __str__(self) -> str:
        return f"{self._where}: {self._name}"

    @property
    def shape(self) -> tuple[int, ...]:
        tensor = self._tensor
        return tuple(tensor.shape if isinstance(tensor, Tensor) else tensor.get_shape())

    def __getitem__(self, index: Any, /) -> Tensor:
        """
        Raises:
            ForeignError: it holds no weights, or NaN or infinity.
        """
        part: Tensor = self._tensor[index]
        if not part.is_floating_point() and not self._name.endswith(COUNTER):
            kind = str(part.dtype).removeprefix("torch.")
            raise ForeignError(f"{self} holds {kind}, no weights; take the model's release in BF16, FP16 or FP32")
        finite = torch.isfinite(part.float() if part.dtype == torch.float64 else part)
        if not finite.all():
            raise ForeignError(
                f"{self} holds {int((~finite).sum()):,} numbers that are NaN or infinite in float32: whatever is "
                "computed with it is, too; fetch it again, or take the checkpoint before"
            )
        return part
