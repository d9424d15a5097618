"""The language model's linears in a quarter of float32's memory, for answering: int8 weights with a scale for each row.

    hold_in_int8(lm)            # in place; half of bfloat16's, and the model trains no more

What such a linear computes is what its rounded weights give: activations keep their precision, and int8 is exact in
it. A weight is made whole in that precision for as long as its product takes. Everything else (gated blocks, norms,
the table) stays as it is.

Shapes: S text positions, B rows, I inputs, O outputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor, nn

from megatron_af.decoder.lora import OWNER, linear_of

LARGEST = 127


class Int8Linear(nn.Module):
    """In the place of megatron-core's column- or row-parallel linear, on a tensor-parallel rank that is alone.

    Args:
        linear: whose weight it rounds, row by row to steps of the row's largest value / 127.
        returns_bias: the bias is handed on for whoever adds it later, as megatron-core's linears do.
    """

    weight_OI: Tensor
    scale_O: Tensor
    bias_O: Tensor | None

    def __init__(self, linear: Any, *, returns_bias: bool) -> None:
        super().__init__()
        weight_OI = linear.weight.detach().float()
        scale_O = weight_OI.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST
        self.register_buffer("weight_OI", torch.round(weight_OI / scale_O[:, None]).to(torch.int8))
        self.register_buffer("scale_O", scale_O)
        has_bias = linear.bias is not None and linear.bias.numel() > 0
        self.register_buffer("bias_O", linear.bias.detach() if has_bias else None)
        self.returns_bias = returns_bias

    def forward(self, x_SBI: Tensor) -> tuple[Tensor, Tensor | None]:
        """[S, B, O], and the bias where it is not added here."""
        product_SBO = F.linear(x_SBI, self.weight_OI.to(x_SBI.dtype)) * self.scale_O.to(x_SBI.dtype)
        if self.bias_O is None or self.returns_bias:
            return product_SBO, self.bias_O
        return product_SBO + self.bias_O, None


@torch.no_grad()
def hold_in_int8(lm: GPTModel) -> None:
    """Round every linear of the layers of a decoder that lies whole on this rank; adapters must have been merged."""
    assert lm.tp_group.size() == 1, "a model in int8 answers on one rank"
    for layer in lm.decoder.layers:
        assert not hasattr(layer, "lora"), "merge the adapters first"
        for target, owner in OWNER.items():
            rounded = Int8Linear(linear_of(layer, target), returns_bias=target != "linear_qkv")
            setattr(layer.get_submodule(owner), target, rounded)
