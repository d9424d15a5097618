"""The gated cross-attention block in front of a language-model layer, and the layer that carries it.

    x += tanh(gate_attn) * attention(norm(x), audio)        # Flamingo's block as Audio Flamingo 2 sizes it:
    x += tanh(gate_ffn) * ffn(norm(x))                      # its src/helpers.py, GatedCrossAttentionBlock

Both gates start at 0, so a fresh block is the identity. Head dim times heads need not be the hidden size
(AF2-3B: 8 x 64 on 2,048). Keys and values are projected once per block, from tokens that are not normalised.

Shapes: S text positions (this rank's share under sequence parallelism), B rows, H hidden, L audio tokens,
D audio width, N heads, K head dim.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.backends import BackendSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec_for_backend
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from megatron_af.config import CrossAttentionConfig
from megatron_af.decoder.attention import attention_by_stretch, fused_attention
from megatron_af.decoder.cache import CachedAudio
from megatron_af.decoder.stretches import Sight, Stretches

NORM_EPS = 1e-5


def derived(config: TransformerConfig, **changes: Any) -> TransformerConfig:
    """A copy with some fields changed, without the checks and derivations of a new one."""
    config = copy.copy(config)
    for name, value in changes.items():
        setattr(config, name, value)
    return config


class _SharedCopy(torch.autograd.Function):
    """Forward: the copy. Backward: its gradient as that of the tokens it is a copy of."""

    @staticmethod
    def forward(ctx: Any, audio_LBD: Tensor, copy_LBD: Tensor) -> Tensor:
        return copy_LBD.view_as(copy_LBD)

    @staticmethod
    def backward(ctx: Any, gradient_LBD: Tensor) -> tuple[Tensor, None]:
        return gradient_LBD.float(), None


def rounded(audio_LBD: Tensor, dtype: torch.dtype) -> Tensor:
    """Audio tokens in the precision of the layers, for one of them.

    Every layer rounds the float32 tokens for itself, so that autograd sums the layers' gradients in float32. Where the
    tokens carry a ``rounded_copy``, the layers share it instead of keeping one each until the backward pass.
    """
    copy: Tensor | None = getattr(audio_LBD, "rounded_copy", None)
    if audio_LBD.dtype == dtype or copy is None:
        return audio_LBD.to(dtype)
    shared: Tensor = _SharedCopy.apply(audio_LBD, copy)  # type: ignore[no-untyped-call]
    return shared


class AudioCrossAttention(MegatronModule):
    """Text attends to audio: queries from the hidden states, keys and values from the audio tokens.

    ``linear_kv`` is laid out head by head, a head's K rows before its V rows, so that a tensor-parallel rank
    holds whole heads. The audio tokens are not split over the sequence and their gradient is not reduced here:
    encode-ahead sums it over all layers and ranks once a step.
    """

    def __init__(
        self,
        config: TransformerConfig,
        cross_attention: CrossAttentionConfig,
        audio_dim: int,
        provider: BackendSpecProvider,
        process_groups: ProcessGroupCollection,
    ) -> None:
        super().__init__(config=config)
        self.head_dim = cross_attention.head_dim
        inner = cross_attention.heads * cross_attention.head_dim
        common = {"init_method": config.init_method, "is_expert": False, "tp_group": process_groups.tp}
        self.linear_q = provider.column_parallel_linear()(
            config.hidden_size, inner, config=config, bias=False, skip_bias_add=False, gather_output=False, **common
        )
        self.linear_kv = ColumnParallelLinear(
            audio_dim,
            2 * inner,
            config=derived(config, sequence_parallel=False),
            bias=False,
            disable_grad_reduce=True,
            **common,
        )
        self.linear_proj = provider.row_parallel_linear()(
            inner, config.hidden_size, config=config, bias=False, skip_bias_add=False, input_is_parallel=True, **common
        )

    def forward(self, x_SBH: Tensor, audio: Tensor | CachedAudio, stretches: Stretches | None) -> Tensor:
        """
        Args:
            audio: tokens [L, B, D], or, while answers are decoded, the cache of what they project to, with its mask.
            stretches: which positions see which tokens; None: all see all of their row.
        """
        query_SBND = self.linear_q(x_SBH)[0].unflatten(-1, (-1, self.head_dim))
        if isinstance(audio, CachedAudio):
            attended_SBH = self._decoded(query_SBND, audio)
        else:
            key_LBNK, value_LBNK = self._project(audio).unbind(3)
            if stretches is None:
                attended_SBH = fused_attention(query_SBND, key_LBNK, value_LBNK, None, causal=False)
            else:
                attended_SBH = attention_by_stretch(query_SBND, key_LBNK, value_LBNK, stretches, causal=False)
        output_SBH: Tensor = self.linear_proj(attended_SBH)[0]
        return output_SBH

    def _decoded(self, query_SBND: Tensor, audio: CachedAudio) -> Tensor:
        mask_U1SL = audio.mask_U1SL  # may have more keys than there are tokens: their keys and values are zero
        room = len(audio.cache.heard.tokens_LUH) if mask_U1SL is None else mask_U1SL.shape[-1]
        key_LUNK, value_LUNK = audio.cache.audio(self, room, self._project).unbind(3)
        folded_SUND = audio.fold(query_SBND)
        return audio.unfold(fused_attention(folded_SUND, key_LUNK, value_LUNK, mask_U1SL, causal=False))

    def _project(self, audio_LBD: Tensor) -> Tensor:
        """[L, B, N, 2, K]: keys and values."""
        audio_LBD = rounded(audio_LBD, self.config.params_dtype)
        projected: Tensor = self.linear_kv(audio_LBD)[0].unflatten(-1, (-1, 2, self.head_dim))
        return projected


class GatedCrossAttention(MegatronModule):
    """One gated block. Parameters: ``attention_norm``, ``attention``, ``gate_attn``, ``ffn_norm``, ``ffn``,
    ``gate_ffn``."""

    def __init__(
        self,
        config: TransformerConfig,
        cross_attention: CrossAttentionConfig,
        audio_dim: int,
        provider: BackendSpecProvider,
        process_groups: ProcessGroupCollection,
    ) -> None:
        config = derived(
            config,
            normalization="LayerNorm",
            ffn_hidden_size=cross_attention.ffn_multiplier * config.hidden_size,
            gated_linear_unit=False,
            add_bias_linear=False,
            activation_func=F.gelu,  # the exact one (erf); megatron-core's fused form is the tanh approximation
            bias_activation_fusion=False,
        )
        super().__init__(config=config)
        norm = provider.layer_norm(rms_norm=False)
        size = {"config": config, "hidden_size": config.hidden_size, "eps": NORM_EPS}
        self.attention_norm = norm(**size)
        self.attention = AudioCrossAttention(config, cross_attention, audio_dim, provider, process_groups)
        self.gate_attn = _gate(config)
        self.ffn_norm = norm(**size)
        build_ffn = get_mlp_module_spec_for_backend(backend=provider)
        self.ffn = build_ffn(config=config, pg_collection=process_groups, is_mtp_layer=False)
        self.gate_ffn = _gate(config)
        self.skipped = False

    def skip_if_identity(self) -> bool:
        """From now on leave the block out if it is frozen with both gates at 0; waits for the device once."""
        frozen = not any(parameter.requires_grad for parameter in self.parameters())
        self.skipped = frozen and not (self.gate_attn.any() or self.gate_ffn.any())
        return self.skipped

    def forward(self, x_SBH: Tensor, audio: Tensor | CachedAudio, stretches: Stretches | None = None) -> Tensor:
        if self.skipped:
            return x_SBH
        x_SBH = x_SBH + self.gate_attn.tanh() * self.attention(self.attention_norm(x_SBH), audio, stretches)
        return x_SBH + self.gate_ffn.tanh() * self.ffn(self.ffn_norm(x_SBH))[0]


def _gate(config: TransformerConfig) -> nn.Parameter:
    gate = nn.Parameter(torch.zeros(1, dtype=config.params_dtype))
    # Under sequence parallelism every rank sees a part of the positions: gradients are partial sums, and this
    # flag makes megatron-core add them up.
    gate.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    return gate


class AudioDecoderLayer(TransformerLayer):
    """A language-model layer with a gated block in front: one pipeline layer, so that megatron-core's layer
    offsets, recomputation and checkpoint numbering hold for it."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: TransformerLayerSubmodules,
        cross_attention: CrossAttentionConfig,
        audio_dim: int,
        provider: BackendSpecProvider,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, submodules, **kwargs)
        self.xattn = GatedCrossAttention(config, cross_attention, audio_dim, provider, self.pg_collection)

    def forward(
        self,
        hidden_states: Tensor,
        *args: Any,
        context: Tensor | CachedAudio | None = None,
        context_mask: None = None,
        packed_seq_params: Sight | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | CachedAudio | None]:
        """``context`` holds the audio tokens [L, B, D], ``packed_seq_params`` what each position sees of them."""
        stretches = None if packed_seq_params is None else packed_seq_params.audio
        hidden_states = self.xattn(hidden_states, context, stretches)
        output, _ = super().forward(hidden_states, *args, packed_seq_params=packed_seq_params, **kwargs)
        return output, context
