"""Tokens added behind the vocabulary: their rows train while the language model's table stays frozen.

The rows are a parameter of the audio side, [N, H], and reach the decoder as one leaf tensor per step, like
audio tokens. A lookup of an added id takes its row from there, and so does its output column (tied or not);
the table's own rows at these ids, where it has any, are never read and get no gradient. This is right for a
frozen and for a trainable table.

Gradients of the leaf are partial: their sum over the model-parallel group is the gradient.

Shapes: S positions of this rank, B rows, H hidden, N added tokens, T supervised positions, V vocabulary rows of
this tensor-parallel rank, A added tokens among them.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear
from torch import Tensor

from megatron_af.config import LMConfig


@dataclass(frozen=True, kw_only=True)
class TokenTable:
    """Which rows of the padded table are words, added tokens and padding, and which lie on this rank."""

    vocab: int
    """Rows of the language model's own table."""
    first_added_id: int
    num_added: int
    tensor_size: int
    tensor_rank: int

    @classmethod
    def of(
        cls, lm: LMConfig, first_added_id: int, num_added: int, *, tensor_size: int, tensor_rank: int
    ) -> "TokenTable":
        return cls(
            vocab=lm.vocab,
            first_added_id=first_added_id,
            num_added=num_added,
            tensor_size=tensor_size,
            tensor_rank=tensor_rank,
        )

    @property
    def num_tokens(self) -> int:
        """Ids that can be predicted: the table's rows and the added tokens, which may lie inside it."""
        return max(self.vocab, self.first_added_id + self.num_added)

    @property
    def padded_rows(self) -> int:
        """Rows of the table in memory: the same for up to 8 tensor-parallel ranks, so that checkpoints of
        one layout fit another; a multiple of 128 per rank for the kernels' sake (8 for toy vocabularies)."""
        unit = 128 if self.num_tokens >= 16_384 else 8
        unit *= math.lcm(8, self.tensor_size)
        return -(-self.num_tokens // unit) * unit

    @property
    def local_rows(self) -> int:
        return self.padded_rows // self.tensor_size

    def local(self, row: int) -> int:
        """A global row number as a position in this rank's part, cut to its ends."""
        return min(max(row - self.tensor_rank * self.local_rows, 0), self.local_rows)

    def is_added(self, ids: Tensor) -> Tensor:
        return (ids >= self.first_added_id) & (ids < self.first_added_id + self.num_added)


def replace_added(table: TokenTable, ids_SB: Tensor, embedded_SBH: Tensor, rows_NH: Tensor) -> Tensor:
    """Embeddings with those of added ids taken from ``rows_NH``."""
    if not table.num_added:
        return embedded_SBH
    index_SB = (ids_SB - table.first_added_id).clamp(0, table.num_added - 1)
    return torch.where(table.is_added(ids_SB)[..., None], F.embedding(index_SB, rows_NH), embedded_SBH)


def token_logits(table: TokenTable, hidden_TH: Tensor, weight_VH: Tensor, rows_NH: Tensor) -> Tensor:
    """Logits of this rank's vocabulary rows, [T, V]; -inf at rows that are padding."""
    start, stop = table.local(table.first_added_id), table.local(table.first_added_id + table.num_added)
    offset = table.tensor_rank * table.local_rows - table.first_added_id
    rows_AH = rows_NH[start + offset : stop + offset] if stop > start else rows_NH[:0]
    valid = table.local(table.num_tokens)
    logits: Tensor = _TokenLogits.apply(hidden_TH, weight_VH, rows_AH, start, valid)  # type: ignore[no-untyped-call]
    return logits


class OutputTable(ColumnParallelLinear):
    """megatron-core's output layer, whose forward gives the logits of table and added tokens.

    Whoever trains with overlapped ZeRO-1 must read the weight in here: only then has it been gathered.
    """

    @classmethod
    def take_over(cls, layer: ColumnParallelLinear) -> None:
        """Make one of megatron-core's output layer, its weight where it is."""
        assert type(layer) is ColumnParallelLinear
        layer.__class__ = cls

    def forward(self, hidden_TH: Tensor, table: TokenTable, rows_NH: Tensor, weight_VH: Tensor | None) -> Tensor:
        """
        Args:
            weight_VH: of the embedding, where this layer has none of its own.
        """
        return token_logits(table, hidden_TH, self.weight if weight_VH is None else weight_VH, rows_NH)


class _TokenLogits(torch.autograd.Function):
    """``hidden @ weight.T`` with the columns from ``start`` on taken from ``rows`` and those from ``valid`` on
    -inf; neither direction copies the logits or the table."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        rows_AH: Tensor,
        start: int,
        valid: int,
    ) -> Tensor:
        ctx.save_for_backward(hidden_TH, weight_VH, rows_AH)
        stop = start + rows_AH.shape[0]
        ctx.parts = [(0, start), (stop, valid)] if stop > start else [(0, valid)]
        ctx.added = slice(start, stop)
        logits_TV = F.linear(hidden_TH, weight_VH)
        logits_TV[:, start:stop] = F.linear(hidden_TH, rows_AH)
        logits_TV[:, valid:] = float("-inf")
        return logits_TV

    @staticmethod
    def backward(ctx: Any, grad_TV: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TH, weight_VH, rows_AH = ctx.saved_tensors
        grad_hidden = grad_weight = grad_rows = None
        if ctx.needs_input_grad[0]:
            grad_hidden = grad_TV[:, ctx.added] @ rows_AH
            for start, stop in ctx.parts:
                grad_hidden.addmm_(grad_TV[:, start:stop], weight_VH[start:stop])
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight_VH)
            for start, stop in ctx.parts:
                torch.mm(grad_TV[:, start:stop].t(), hidden_TH, out=grad_weight[start:stop])
        if ctx.needs_input_grad[2]:
            grad_rows = grad_TV[:, ctx.added].t() @ hidden_TH
        return grad_hidden, grad_weight, grad_rows, None, None
