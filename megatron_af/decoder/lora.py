"""Low-rank adapters beside the linears of the language model's layers (LoRA, Hu et al. 2021).

    y = W x + alpha / rank * B A dropout(x)

    add_adapters(lm, config.lora)        # lm.decoder.layers.N.lora.linear_qkv.a.weight, ….b.weight
    merge_adapters(lm)                   # W + alpha / rank * B A in the place of W; the adapters are gone

The frozen linear stays as it is, under its own name. Where it is fused (query, key and value; gate and up), so is its
adapter: one A, and the rows of B in the order of the rows of W. Of the two matrices the one that shares a dimension
with W's cut over the tensor-parallel ranks is cut like it, and the other one is whole on each of them.

Shapes: S text positions (this rank's share under sequence parallelism), B rows, R rank; I and O, what this rank's part
of the linear takes and gives.
"""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.random import get_data_parallel_rng_tracker_name
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from megatron_af.config import LoRAConfig

OWNER = {"linear_qkv": "self_attention", "linear_proj": "self_attention", "linear_fc1": "mlp", "linear_fc2": "mlp"}
CUT_BY_OUTPUT = ("linear_qkv", "linear_fc1")
"""Whose output is cut over the tensor-parallel ranks; of the others the input is."""


class Adapter(MegatronModule):
    """``b`` and ``a`` of one linear; its output is added to the linear's.

    Args:
        target: name of the linear.
        linear: this rank's part of it.
    """

    def __init__(
        self, lora: LoRAConfig, target: str, linear: Any, config: TransformerConfig, tensor_group: Any
    ) -> None:
        super().__init__(config=config)
        self.tp_group = tensor_group
        self.scale, self.dropout = lora.scale, lora.dropout
        self.cut_by_output = target in CUT_BY_OUTPUT
        self.halves = 2 if target == "linear_fc1" and config.gated_linear_unit else 1
        outputs, inputs = linear.weight.shape
        self.a = nn.Linear(inputs, lora.rank, bias=False, dtype=config.params_dtype)
        self.b = nn.Linear(lora.rank, outputs, bias=False, dtype=config.params_dtype)
        whole, cut, dim = (self.a, self.b, 0) if self.cut_by_output else (self.b, self.a, 1)
        set_tensor_model_parallel_attributes(cut.weight, True, dim, self.halves)
        # Under sequence parallelism each rank applies it to a part of the positions: its gradients are partial sums.
        whole.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self._beside = linear.register_forward_hook(self._add)

    def forward(self, x_SBI: Tensor) -> Tensor:
        """[S, B, O], with S as the linear gives it."""
        sequence = self.config.sequence_parallel
        if self.training and self.dropout:
            # Tensor-parallel ranks that hold the same positions and features drop the same of them.
            same = self.cut_by_output and not sequence
            stream = (get_data_parallel_rng_tracker_name(),) if same else ()
            with tensor_parallel.get_cuda_rng_tracker().fork(*stream):
                x_SBI = F.dropout(x_SBI, self.dropout)
        h_SBR = self.a(x_SBI)
        if self.cut_by_output:
            enter = (
                tensor_parallel.gather_from_sequence_parallel_region
                if sequence
                else tensor_parallel.copy_to_tensor_model_parallel_region
            )
            h_SBR = enter(h_SBR, group=self.tp_group)
        else:
            leave = (
                tensor_parallel.reduce_scatter_to_sequence_parallel_region
                if sequence
                else tensor_parallel.reduce_from_tensor_model_parallel_region
            )
            h_SBR = leave(h_SBR, group=self.tp_group)
        added_SBO: Tensor = self.scale * self.b(h_SBR)
        return added_SBO

    def _add(self, linear: nn.Module, inputs: tuple[Any, ...], output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        product_SBO, bias = output
        return product_SBO + self(inputs[0]), bias

    @torch.no_grad()
    def merge_into(self, linear: Any) -> None:
        """Add what it does to the linear's weight (summed in float32), and be asked no more."""
        added_OI = self.scale * self.b.weight.float() @ self.a.weight.float()
        linear.weight.copy_(linear.weight.float() + added_OI)
        self._beside.remove()

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> ShardedStateDict:
        assert metadata is not None
        state: ShardedStateDict = make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"b.weight": 0} if self.cut_by_output else {"a.weight": 1},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )
        if self.halves == 2:  # each half is cut by itself, as those of the linear are
            key = f"{prefix}b.weight"
            state[key] = apply_swiglu_sharded_factory(
                state[key], sharded_offsets, tp_group=self.tp_group, dp_group=metadata["dp_cp_group"]
            )
        return state


def add_adapters(lm: GPTModel, lora: LoRAConfig) -> None:
    """Give every layer of a chunk its adapters; their first values come from ``decoder/initialization.py``."""
    for layer in lm.decoder.layers:
        layer.lora = MegatronModule(config=lm.config)
        for target in lora.targets:
            adapter = Adapter(lora, target, linear_of(layer, target), lm.config, lm.tp_group)
            layer.lora.add_module(target, adapter)


def merge_adapters(lm: GPTModel) -> None:
    """Fold a chunk's adapters into its linears, which then compute the same without them; nothing where none are."""
    for layer in lm.decoder.layers:
        if hasattr(layer, "lora"):
            for target, adapter in layer.lora.named_children():
                adapter.merge_into(linear_of(layer, target))
            del layer.lora


def linear_of(layer: nn.Module, target: str) -> nn.Module:
    return layer.get_submodule(f"{OWNER[target]}.{target}")
