"""A decoder that only answers: megatron-core's linears without what they do for gradients and for other ranks.

    only_answer(lm)             # in place; the model trains no more

Their autograd functions, and the collectives of a group of one, cost several times the product of one token of a small
model. What they compute stays the same.

Shapes: S text positions, B rows, I inputs, O outputs.
"""

from typing import Any

import torch.nn.functional as F
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch import Tensor


class PlainColumn(ColumnParallelLinear):
    """On a tensor-parallel rank that is alone."""

    def forward(self, x_SBI: Tensor, weight: Tensor | None = None, *_: Any) -> tuple[Tensor, Tensor | None]:
        """[S, B, O], and the bias where it is not added here."""
        return _product(self, x_SBI, self.weight if weight is None else weight)


class PlainRow(RowParallelLinear):
    """On a tensor-parallel rank that is alone."""

    def forward(self, x_SBI: Tensor) -> tuple[Tensor, Tensor | None]:
        """[S, B, O], and the bias where it is not added here."""
        return _product(self, x_SBI, self.weight)


def only_answer(lm: GPTModel) -> None:
    """Drops nothing at random any more, and has plain linears where they are megatron-core's and lie whole here."""
    lm.eval()
    kinds = {ColumnParallelLinear: PlainColumn, RowParallelLinear: PlainRow}
    for module in lm.modules() if lm.tp_group.size() == 1 else ():
        module.__class__ = kinds.get(type(module), type(module))


def _product(linear: Any, x_SBI: Tensor, weight_OI: Tensor) -> tuple[Tensor, Tensor | None]:
    bias_O = linear.bias if linear.bias is not None and linear.bias.numel() else None
    if linear.skip_bias_add:
        return F.linear(x_SBI, weight_OI), bias_O
    return F.linear(x_SBI, weight_OI, bias_O), None
