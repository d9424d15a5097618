"""What a family of language models is: its layers in megatron-core's words, its weights' names, what it costs.

    family = family_of(config.model.lm)              # of ``model.lm.family``
    family.core_settings(), family.layer(provider), list(family.problems())

``family`` names a built-in family, or ``module:Class`` of anybody's own: a subclass of :class:`LanguageFamily` in one
file. Such a module needs neither torch nor megatron-core before ``core_settings`` or ``layer`` is called:
configurations are checked without them.

Parameters keep megatron-core's names: ``decoder.layers.N.input_layernorm``, ``self_attention.linear_qkv`` and
``linear_proj``, ``pre_mlp_layernorm``, ``mlp.linear_fc1`` and ``linear_fc2``, ``decoder.final_layernorm``. A table of
learnt positions is ``position_embeddings``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from megatron_af.config import LMConfig
from megatron_af.flops import Tally

if TYPE_CHECKING:
    from megatron.core.models.backends import BackendSpecProvider
    from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules


class LanguageFamily(ABC):
    model_type: ClassVar[str]
    """``model_type`` in the ``config.json`` of its Hugging Face folders."""
    outside_layers: ClassVar[Mapping[str, str]]
    """Our name -> Hugging Face's."""
    layer_prefix: ClassVar[str]
    """What Hugging Face's names inside a layer begin with, up to its number."""
    inside_layers: ClassVar[Mapping[str, tuple[str, ...]]]
    """Our name inside a layer -> the tensors it is made of: one; two that lie one behind the other (gate and up of a
    gated linear unit); or query, key and value, which megatron-core fuses group by group."""
    position_offset: ClassVar[int | None] = None
    """Where positions are learnt: the row of their table (``position_embeddings``) that stands for the first place."""

    def __init__(self, config: LMConfig) -> None:
        self.config = config

    @abstractmethod
    def problems(self) -> Iterator[str]:
        """Why it cannot be built, beyond what holds for any decoder: keys and fixes."""

    @abstractmethod
    def core_settings(self) -> dict[str, Any]:
        """Of megatron-core's ``TransformerConfig``: norms, activation, biases."""

    @abstractmethod
    def model_settings(self) -> dict[str, Any]:
        """Of megatron-core's ``GPTModel``: positions that attention turns by; type ``none`` where they are learnt."""

    def layer(self, provider: BackendSpecProvider) -> TransformerLayerSubmodules:
        """What a layer is made of; its ``input_layernorm`` is the kind of the final norm, too.

        By default norms in front of causal attention and of a feed-forward unit; which ones, and their biases,
        megatron-core takes from :meth:`core_settings`.
        """
        from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
        from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec_for_backend
        from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
        from megatron.core.transformer.enums import AttnMaskType
        from megatron.core.transformer.spec_utils import ModuleSpec
        from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

        norm = provider.layer_norm()
        return TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=provider.column_parallel_linear(),
                    core_attention=provider.core_attention(),
                    linear_proj=provider.row_parallel_linear(),
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=get_mlp_module_spec_for_backend(backend=provider),
            mlp_bda=get_bias_dropout_add,
        )

    def initial_std(self, name: str) -> float:
        """Standard deviation of a fresh matrix of that name.

        sqrt(2 / (5 hidden)) (Nguyen and Salazar 2019) is Qwen2.5's ``initializer_range`` of 0.02 at its sizes; at that
        constant a narrow model's attention starts so flat that it does not learn to look anything up. What writes into
        the residual stream is smaller by sqrt(2 layers) (GPT-2).
        """
        std = math.sqrt(2 / (5 * self.config.hidden))
        writes_residual = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
        return std / math.sqrt(2 * self.config.layers) if writes_residual else std

    @abstractmethod
    def tally(self, tally: Tally, x: bool, at: str) -> bool:
        """Tell the products of the layer whose names begin with ``at`` for the text.

        Args:
            x: a gradient flows into the layer.

        Returns:
            whether one flows out of it.
        """

    @classmethod
    @abstractmethod
    def read_config(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Keys of ``model.lm`` that a ``config.json`` states.

        Raises:
            ValueError: a variant that this family does not compute.
        """

    @property
    def position_rows(self) -> int:
        """Of the table of learnt positions; 0 where there is none."""
        return 0 if self.position_offset is None else self.position_offset + self.config.max_positions

    @abstractmethod
    def write_config(self) -> dict[str, Any]:
        """The ``config.json`` of these sizes, of which :meth:`read_config` gives the same ones back."""


def family_of(config: LMConfig) -> LanguageFamily:
    """
    Raises:
        UnknownComponent: ``model.lm.family`` names none.
    """
    found: LanguageFamily = config.component
    return found
