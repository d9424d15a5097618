"""Attention of the language model, and where its linears and norms come from.

Linears and norms are Transformer Engine's or torch's (``layers``); attention is torch's fused kernels with both.
Norms stay separate from the linears behind them, so that parameters have one name everywhere.

    provider = spec_provider(lm_config)

Shapes: S query positions, L key positions, B rows, T positions or K keys of all rows, N heads, D head dim.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.backends import BackendSpecProvider, LocalSpecProvider
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from megatron_af.decoder.cache import CachedText
from megatron_af.decoder.stretches import Sight, Stretches
from megatron_af.parallel.transfer import there


def fused_attention(
    query_SBND: Tensor, key_LBND: Tensor, value_LBND: Tensor, mask_B1SL: Tensor | None, *, causal: bool
) -> Tensor:
    """Scaled dot-product attention in one kernel.

    Args:
        mask_B1SL: added to the scores (0 or -inf), or None.
        causal: without a mask, position s sees keys up to s.

    Returns:
        [S, B, N * D]; key and value may have fewer heads (grouped queries).
    """
    query_BNSD, key_BNLD, value_BNLD = (x.permute(1, 2, 0, 3) for x in (query_SBND, key_LBND, value_LBND))
    groups = query_BNSD.shape[1] // key_BNLD.shape[1]
    if groups > 1 and query_SBND.shape[0] == 1:
        # One position: the queries of a group are positions of one head, and no key is copied for them.
        batch, heads, dim = query_SBND.shape[1:]
        folded_GBND = query_SBND.view(batch, heads // groups, groups, dim).permute(2, 0, 1, 3)
        attended_GBH = fused_attention(folded_GBND, key_LBND, value_LBND, mask_B1SL, causal=False)
        attended_GBND = attended_GBH.view(groups, batch, heads // groups, dim)
        return attended_GBND.permute(1, 2, 0, 3).reshape(1, batch, heads * dim)
    if groups > 1 and mask_B1SL is not None:
        # On a GPU the one kernel that takes a mask knows no grouped queries; torch would fall back to
        # materialised scores.
        key_BNLD, value_BNLD = (x.repeat_interleave(groups, dim=1) for x in (key_BNLD, value_BNLD))
        groups = 1
    output_BNSD = F.scaled_dot_product_attention(
        query_BNSD,
        key_BNLD,
        value_BNLD,
        attn_mask=mask_B1SL,
        is_causal=causal and mask_B1SL is None,
        enable_gqa=groups > 1,
    )
    return output_BNSD.permute(2, 0, 1, 3).flatten(2)


def grouping(kernel: Callable[..., Any]) -> dict[str, Any]:
    """What lets a kernel take fewer heads of keys than of queries; before torch 2.12 that of stretches does unasked."""
    return {"enable_gqa": True} if "enable_gqa" in inspect.signature(kernel).parameters else {}


_GROUPING = grouping(varlen_attn)


@torch.compiler.disable  # every batch has stretches of its own, and what was compiled for others is of no use
def attention_by_stretch(
    query_SBND: Tensor, key_LBND: Tensor, value_LBND: Tensor, stretches: Stretches, *, causal: bool
) -> Tensor:
    """Scaled dot-product attention, each stretch of positions to its own keys.

    In bf16 a GPU has one kernel for all stretches. Elsewhere each is a call of its own: on a CPU three times as fast as
    a mask over a row of four segments, 25 times over one of 34.

    Args:
        causal: a stretch has as many keys as positions, and position s sees those up to s.

    Returns:
        [S, B, N * D], 0 where a position sees nothing; keys may have fewer heads (grouped queries).
    """
    length, batch = query_SBND.shape[:2]
    query_TND, key_KND, value_KND = (x.transpose(0, 1).flatten(0, 1) for x in (query_SBND, key_LBND, value_LBND))
    device, head_dim = query_TND.device, query_TND.shape[-1]
    if stretches.index_K is not None:
        index_K = there(stretches.index_K, device)
        key_KND, value_KND = key_KND.index_select(0, index_K), value_KND.index_select(0, index_K)
    if device.type != "cpu" and query_TND.dtype == torch.bfloat16 and head_dim % 8 == 0:
        bounds_2E = there(stretches.bounds_2E, device)
        attended_TND: Any = varlen_attn(
            query_TND,
            key_KND,
            value_KND,
            bounds_2E[0],
            bounds_2E[1],
            max(stretches.queries),
            max(stretches.keys),
            window_size=(-1, 0) if causal else (-1, -1),
            **_GROUPING,
        )
    elif any(count and seen for count, seen in zip(stretches.queries, stretches.keys, strict=True)):
        attended_TND = torch.cat(list(_each(query_TND, key_KND, value_KND, stretches, causal)))
    else:  # nobody sees anything; yet a reduction waits for a gradient of every weight, so it must have one, of 0
        attended_TND = 0 * query_TND + 0 * (key_KND.sum() + value_KND.sum())
    attended_SBH: Tensor = attended_TND.view(batch, length, -1).transpose(0, 1).contiguous()
    return attended_SBH


def _each(
    query_TND: Tensor, key_KND: Tensor, value_KND: Tensor, stretches: Stretches, causal: bool
) -> Iterator[Tensor]:
    """What the positions of each stretch attend to, one call after the other."""
    queries, keys, values = (
        torch.split(x, list(lengths))
        for x, lengths in (
            (query_TND, stretches.queries),
            (key_KND, stretches.keys),
            (value_KND, stretches.keys),
        )
    )
    for query, key, value in zip(queries, keys, values, strict=True):
        if len(query) and len(key):
            attended_T1H = fused_attention(query[:, None], key[:, None], value[:, None], None, causal=causal)
            yield attended_T1H.view(query.shape)
        elif len(query):
            yield torch.zeros_like(query)


class CausalAttention(MegatronModule):
    """megatron-core's core attention of a decoder layer (in place of its ``DotProductAttention``).

    What a position sees comes as ``packed_seq_params``; while answers are decoded, as a
    :class:`~megatron_af.decoder.cache.CachedText` in the place of a mask.
    """

    def __init__(self, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: CachedText | None,
        packed_seq_params: Sight | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if isinstance(attention_mask, CachedText):
            key, value = attention_mask.cache.text(self, attention_mask, key, value)
            # One new token sees everything; more of them, where there is no mask, are a text from its beginning.
            return fused_attention(query, key, value, attention_mask.mask_B1SL, causal=query.shape[0] > 1)
        if packed_seq_params is not None and packed_seq_params.text is not None:
            return attention_by_stretch(query, key, value, packed_seq_params.text, causal=True)
        return fused_attention(query, key, value, None, causal=True)


class TorchNorm:
    """torch's RMSNorm or LayerNorm, usable under sequence parallelism (megatron-core's wrapper refuses it).

    There a norm sees a part of the sequence on each rank; the flag on its parameters makes megatron-core sum
    their gradients over the tensor-parallel group.
    """

    def __new__(cls, config: Any, hidden_size: int, eps: float = 1e-5) -> nn.Module:  # type: ignore[misc]
        norm = {"RMSNorm": nn.RMSNorm, "LayerNorm": nn.LayerNorm}[config.normalization]
        module: nn.Module = norm(hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in module.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return module


class TorchSpecProvider(LocalSpecProvider):
    def layer_norm(self, rms_norm: bool = False, for_qk: bool = False, has_residual: bool = False) -> type:
        return TorchNorm

    def core_attention(self) -> type:
        return CausalAttention


def spec_provider(config: TransformerConfig) -> BackendSpecProvider:
    """Where the decoder's linears, norms and attention come from."""
    if config.transformer_impl == "local":
        return TorchSpecProvider()
    # Imported here: not every machine has Transformer Engine.
    from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider

    class UnfusedTESpecProvider(TESpecProvider):  # type: ignore[misc, unused-ignore]
        def fuse_layernorm_and_linear(self) -> bool:
            return False

        def column_parallel_layer_norm_linear(self) -> None:
            return None

        def core_attention(self) -> type:
            return CausalAttention

    return UnfusedTESpecProvider()
