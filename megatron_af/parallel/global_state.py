"""Between a model cut over tensor- and pipeline-parallel ranks and whole tensors under canonical names.

    load_global(chunks, front, lambda name, shape: tensors[name])     # every rank, from whole tensors
    weights = gather_global(chunks, front, "data")                    # whole tensors, on rank 0 alone

A canonical name is megatron-core's own with the layer's global number and the prefix ``lm.``; the audio side
keeps its names. A tied copy of the embedding table on the last stage has the table's name.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor, nn

EMBEDDING, HEAD = "lm.embedding.word_embeddings.weight", "lm.output_layer.weight"
TABLES = (EMBEDDING, HEAD)
"""Parameters with a row for each word."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which part of a whole tensor a parameter of this rank is."""

    name: str
    """Canonical name of the whole tensor."""
    shape: torch.Size
    """Of the whole tensor, without padding of the vocabulary."""
    dim: int | None = None
    """Dimension cut over the tensor-parallel ranks; None: every rank holds it whole."""
    rank: int = 0
    size: int = 1
    """Of the tensor-parallel group."""
    halves: int = 1
    """2 where two matrices lie one behind the other (gate and up of a gated linear unit), each cut by itself."""
    local_length: int = 0
    """Length along ``dim`` on this rank, padding included."""

    def ranges(self) -> list[tuple[int, int]]:
        """Rows (along ``dim``) of the whole tensor that this rank holds, without padding."""
        assert self.dim is not None, f"{self.name} is not cut"
        total, part = self.shape[self.dim], self.local_length // self.halves
        starts = [half * (total // self.halves) + self.rank * part for half in range(self.halves)]
        return [(min(start, total), min(start + part, total)) for start in starts]

    def take(self, whole: Tensor) -> Tensor:
        """This rank's part of the whole tensor, without padding."""
        if whole.shape != self.shape:
            raise ValueError(f"{self.name}: expected shape {tuple(self.shape)}, got {tuple(whole.shape)}")
        if self.dim is None:
            return whole
        return torch.cat([whole.narrow(self.dim, start, stop - start) for start, stop in self.ranges()], self.dim)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The whole tensor from the parts of all ranks; undoes :meth:`take`."""
        if self.dim is None:
            return parts[self.rank]
        by_half = zip(*(part.chunk(self.halves, self.dim) for part in parts), strict=True)
        whole = torch.cat([piece for half in by_half for piece in half], self.dim)
        return whole.narrow(self.dim, 0, self.shape[self.dim])


def unwrapped(module: Any) -> Any:
    """The model inside megatron-core's wrappers (DistributedDataParallel)."""
    while hasattr(module, "module"):
        module = module.module
    return module


def canonical_name(chunk: nn.Module, name: str) -> str:
    """Canonical name of a parameter that ``chunk`` calls ``name``."""
    lm = unwrapped(chunk)
    name = re.sub(r"^(module\.)+", "", name)
    if name == "output_layer.weight" and lm.share_embeddings_and_output_weights:
        return EMBEDDING
    number = re.match(r"decoder\.layers\.(\d+)\.", name)
    if number:
        layer = lm.decoder.layers[int(number[1])].layer_number - 1
        name = f"decoder.layers.{layer}.{name[number.end() :]}"
    return f"lm.{name}"


def placements(chunk: nn.Module) -> Iterator[tuple[Placement, nn.Parameter]]:
    """Every parameter of a decoder chunk with its place in the whole model."""
    rank = parallel_state.get_tensor_model_parallel_rank()
    size = parallel_state.get_tensor_model_parallel_world_size()
    lm = unwrapped(chunk)
    for local_name, parameter in lm.named_parameters():
        name, shape = canonical_name(lm, local_name), list(parameter.shape)
        if not getattr(parameter, "tensor_model_parallel", False):
            yield Placement(name=name, shape=parameter.shape), parameter
            continue
        dim: int = parameter.partition_dim
        local_length = shape[dim]
        shape[dim] *= size
        if name in TABLES:
            shape[dim] = lm.table.vocab
        yield (
            Placement(
                name=name,
                shape=torch.Size(shape),
                dim=dim,
                rank=rank,
                size=size,
                halves=parameter.partition_stride,
                local_length=local_length,
            ),
            parameter,
        )


def fill(parameter: nn.Parameter, placement: Placement, part: Tensor) -> None:
    """Write this rank's part of a tensor into its parameter; padding becomes 0."""
    with torch.no_grad():
        if part.shape == parameter.shape:
            parameter.copy_(part)
        else:
            assert placement.dim is not None, f"{placement.name}: {part.shape} into {parameter.shape}"
            parameter.zero_().narrow(placement.dim, 0, part.shape[placement.dim]).copy_(part)


def load_local(chunks: Iterable[nn.Module], read: Callable[[Placement], Tensor]) -> None:
    """Fill every parameter of the decoder from a reader that returns this rank's part."""
    for chunk in chunks:
        for placement, parameter in placements(chunk):
            fill(parameter, placement, read(placement))


def load_global(chunks: Iterable[nn.Module], front: nn.Module | None, get: Callable[[str, torch.Size], Tensor]) -> None:
    """Fill every parameter of this rank from whole tensors.

    Args:
        front: the audio side, or None to leave it.
        get: whole tensor of a canonical name; the shape of the table is the language model's own, unpadded.

    Raises:
        ValueError: ``get`` returned another shape.
    """
    load_local(chunks, lambda placement: placement.take(get(placement.name, placement.shape)))
    if front is not None:
        for name, parameter in unwrapped(front).named_parameters():
            placement = Placement(name=name, shape=parameter.shape)
            fill(parameter, placement, placement.take(get(name, parameter.shape)))


def whole_tensors(
    chunks: Iterable[nn.Module], what: Literal["data", "grad", "main_grad"] = "data"
) -> Iterator[tuple[str, Tensor]]:
    """The decoder's whole tensors under their canonical names, one after another, on rank 0.

    A collective of the whole world: every rank has to run through it to its end, and all but rank 0 get nothing. One
    tensor travels at a time, so that a reader that lets go of each needs room for one. Tensors may be the parameters'
    own memory. Parameters without a gradient are left out where gradients are asked for.
    """
    group, world = parallel_state.get_tensor_model_parallel_group(), dist.get_world_size()
    mine: dict[str, tuple[Placement, Tensor]] = {}
    for chunk in chunks:
        for placement, parameter in placements(chunk):
            part = getattr(parameter, what, None)
            if part is not None:
                mine.setdefault(placement.name, (placement, part.detach()))  # a tied table stands on two stages
    speaks = parallel_state.get_tensor_model_parallel_rank() == parallel_state.get_data_parallel_rank() == 0
    offer = [(name, placement.shape, part.dtype) for name, (placement, part) in mine.items()] if speaks else []
    offers: list[list[tuple[str, torch.Size, torch.dtype]]] = [[] for _ in range(world)]
    dist.all_gather_object(offers, offer)
    ours = dist.get_process_group_ranks(group)
    taken: set[str] = set()
    for owner, offered in enumerate(offers):
        for name, shape, dtype in offered:
            if name in taken:
                continue
            taken.add(name)
            if owner in ours:
                whole = _joined(*mine[name], group)
                if dist.get_rank() == owner != 0:
                    dist.send(whole.contiguous(), dst=0)
            elif dist.get_rank() == 0:
                device = next(iter(mine.values()))[1].device if mine else torch.device("cpu")
                whole = torch.empty(shape, dtype=dtype, device=device)
                dist.recv(whole, src=owner)
            if dist.get_rank() == 0:
                yield name, whole


def _joined(placement: Placement, part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The whole tensor on every rank of a tensor-parallel group."""
    parts = [part.contiguous()]
    if placement.dim is not None and placement.size > 1:
        parts = [torch.empty_like(parts[0]) for _ in range(placement.size)]
        dist.all_gather(parts, part.contiguous(), group=group)
    return placement.join(parts)


def gather_global(
    chunks: Iterable[nn.Module], front: nn.Module | None, what: Literal["data", "grad", "main_grad"] = "data"
) -> dict[str, Tensor]:
    """Copies of all whole tensors on rank 0, an empty dict elsewhere; a collective of the whole world.

    Parameters without a gradient are left out.
    """
    whole = {name: tensor.clone() for name, tensor in whole_tensors(chunks, what)}
    if front is not None and dist.get_rank() == 0:
        named = unwrapped(front).named_parameters()
        found = {name: getattr(parameter, what, None) for name, parameter in named}
        whole |= {name: tensor.detach().clone() for name, tensor in found.items() if tensor is not None}
    return whole
