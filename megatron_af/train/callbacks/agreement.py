"""Whether ranks that hold the same weights, and the same of the optimizer's state, hold the same bits.

A bit that flips in one copy (memory, a bus, a collective) changes no loss that anybody would notice, and spreads into
all copies by the gradients of the next steps. With ``checkpoint.agree_every_steps`` the copies are compared now and
then, and before every checkpoint: one 64-bit sum per tensor, made where the tensor lies, and two reductions.
The moments and float32 masters of the optimizer are copies too: of data-parallel ranks without ZeRO-1, and, of what
tensor ranks hold alike, with it as well. What ZeRO-1 leaves on a single rank has nothing to be compared with.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_af.train.callbacks.base import Callback, Record

if TYPE_CHECKING:
    from megatron_af.train.trainer import Trainer

CHUNK = 1 << 20
"""Elements that are summed at a time."""
_FACTOR = 6364136223846793005
"""Odd, so that what a sum was before changes what it is behind (Knuth's MMIX)."""


class Disagreement(RuntimeError):
    """Ranks that must hold the same weights do not; the newest checkpoint is of a step in which they did."""

    exit_code = 1
    on_all_ranks = True


class Agreement(Callback):
    """Compares every ``every`` steps (0: never), and before each checkpoint.

    Raises:
        Disagreement: on all ranks, naming the first tensor that differs, and where.
    """

    def __init__(self, every: int) -> None:
        self._every, self._compared = every, -1

    def on_step(self, trainer: "Trainer", record: Record) -> None:
        if self._every and trainer.step % self._every == 0:
            self._compare(trainer)

    def on_save(self, trainer: "Trainer") -> None:
        if self._every and self._compared != trainer.step:
            self._compare(trainer)

    def _compare(self, trainer: "Trainer") -> None:
        self._compared = trainer.step
        trainer.learner.sync_parameters()
        found = [told for group, tensors in _copies(trainer) for told in differences(group, tensors)]
        everywhere: list[list[str]] = [[]] * trainer.world_size
        dist.all_gather_object(everywhere, found)
        if told := list(dict.fromkeys(line for lines in everywhere for line in lines)):
            more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
            raise Disagreement(
                f"step {trainer.step}: {told[0]}{more}. They were equal at the newest checkpoint, from which the same "
                "command goes on; when it happens again, take that machine out"
            )


def _copies(trainer: "Trainer") -> Iterator[tuple[dist.ProcessGroup, dict[str, torch.Tensor]]]:
    """Groups of ranks, and what each of their ranks has a copy of."""
    shared = {id(parameter) for parameter in trainer.model.front.parameters()}
    front: dict[str, torch.Tensor] = {}
    decoder: dict[str, torch.Tensor] = {}
    uncut: dict[str, torch.Tensor] = {}
    states = {id(parameter): (part, held) for parameter, part, held in trainer.learner.optimizer.held_state()}
    for name, parameter in trainer.model.named_parameters():
        part, held = states.get(id(parameter), ("", {}))
        state = {f"{name}{part} ({kind} of the optimizer)": tensor for kind, tensor in held.items()}
        everywhere = {name: parameter.detach(), **({} if part else state)}
        if id(parameter) in shared:
            front |= everywhere
            continue
        decoder |= everywhere
        if not getattr(parameter, "tensor_model_parallel", False):
            uncut |= {name: parameter.detach(), **state}
    yield trainer.groups.front.dp, front
    yield trainer.groups.data, decoder
    yield parallel_state.get_tensor_model_parallel_group(), uncut


@torch.no_grad()
def differences(group: dist.ProcessGroup, tensors: dict[str, torch.Tensor]) -> list[str]:
    """Which of the tensors are not the same on all ranks of a group, and on which of them; a collective.

    Args:
        tensors: the same names and shapes on every rank.
    """
    if group.size() == 1 or not tensors:
        return []
    sums_T = torch.stack([bit_sum(tensor) for tensor in tensors.values()])
    least_T, most_T = sums_T.clone(), sums_T.clone()
    dist.all_reduce(least_T, op=dist.ReduceOp.MIN, group=group)
    dist.all_reduce(most_T, op=dist.ReduceOp.MAX, group=group)
    if torch.equal(least_T, most_T):
        return []
    of_ranks: list[list[int]] = [[]] * group.size()
    dist.all_gather_object(of_ranks, sums_T.tolist(), group=group)
    told = []
    for index, name in enumerate(tensors):
        values = [sums[index] for sums in of_ranks]
        usual = max(values, key=values.count)
        ranks = dist.get_process_group_ranks(group)
        odd = [str(rank) for rank, value in zip(ranks, values, strict=True) if value != usual]
        if odd:
            told.append(f"{name} is not the same on all ranks that hold it (rank {', '.join(odd)} differs)")
    return told


def bit_sum(tensor: torch.Tensor) -> torch.Tensor:
    """A 64-bit sum over a tensor's bits, on its device; one flipped bit always changes it."""
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits_N = tensor.contiguous().view(-1).view(kind)
    # Odd weights: what a bit adds is no multiple of 2**64, and the same bits elsewhere add something else.
    weights_C = torch.arange(1, 2 * min(CHUNK, max(bits_N.numel(), 1)), 2, device=tensor.device)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for chunk_C in torch.split(bits_N, CHUNK):
        total = total * _FACTOR + (chunk_C.to(torch.int64) * weights_C[: chunk_C.numel()]).sum()
    return total
