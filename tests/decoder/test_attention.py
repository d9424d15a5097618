"""The attention kernels against their statement: masks, causality, stretches, grouped queries; norms for sequence
parallelism."""

import inspect
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from megatron_af.decoder.attention import (
    CausalAttention,
    TorchNorm,
    TorchSpecProvider,
    attention_by_stretch,
    fused_attention,
    grouping,
    spec_provider,
)
from megatron_af.decoder.stretches import Sight, Stretches
from megatron_af.decoder.transformer_config import transformer_config
from megatron_af.parallel.device import Device
from tests.decoder.toy import mixed_rows, toy_config
from tests.decoder.visible import audio_visible, text_visible

S, L, B, N, D = 5, 7, 2, 4, 8


def by_hand(query: Tensor, key: Tensor, value: Tensor, visible_BSL: Tensor) -> Tensor:
    groups = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(groups, dim=2) for x in (key, value))
    scores = torch.einsum("sbnd,lbnd->bnsl", query, key) / math.sqrt(D)
    weights = scores.masked_fill(~visible_BSL[:, None], -1e30).softmax(-1) * visible_BSL[:, None]
    return torch.einsum("bnsl,lbnd->sbnd", weights, value).flatten(2)


@pytest.mark.parametrize("positions", [S, 1])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("kind", ["mask", "causal", "open"])
def test_it_is_scaled_dot_product_attention(kv_heads: int, kind: str, positions: int) -> None:
    generator = torch.Generator().manual_seed(0)
    keys = positions if kind == "causal" else L
    query = torch.randn(positions, B, N, D, generator=generator)
    key, value = (torch.randn(keys, B, kv_heads, D, generator=generator) for _ in range(2))
    visible = torch.ones(B, positions, keys, dtype=torch.bool)
    mask = None
    if kind == "causal":
        visible = visible.tril()
    if kind == "mask":
        visible = torch.rand(B, positions, keys, generator=generator) > 0.4
        visible[:, :, 0] = True
        mask = torch.zeros(B, 1, positions, keys).masked_fill(~visible[:, None], float("-inf"))
    found = fused_attention(query, key, value, mask, causal=kind != "open")  # with a mask, the mask alone counts
    torch.testing.assert_close(found, by_hand(query, key, value, visible), atol=1e-5, rtol=1e-5)
    if kind == "causal":
        core = CausalAttention.forward(SimpleNamespace(), query, key, value, None, attn_mask_type="ignored")  # type: ignore[arg-type]
        torch.testing.assert_close(core, found)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("of", ["text", "audio"])
def test_stretches_are_attended_to_as_under_a_mask(of: str, kv_heads: int, seed: int) -> None:
    """Value and gradients; rows of one batch are one row to the statement."""
    rows, audio = mixed_rows(seed)
    batch, length = rows.ids_BS.shape
    keys = length if of == "text" else audio.audio_of_BL.shape[1]
    sight = Sight.of(rows, audio.audio_of_BL)
    stretches = sight.text if of == "text" else sight.audio
    assert stretches is not None
    visible_TK = text_visible(rows.segment_BS) if of == "text" else audio_visible(rows, audio.audio_of_BL)
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(length, batch, N, D, generator=generator)
    key, value = (torch.randn(keys, batch, kv_heads, D, generator=generator) for _ in range(2))
    up = torch.randn(length, batch, N * D, generator=generator)
    inputs = [x.requires_grad_() for x in (query, key, value)]
    found = attention_by_stretch(query, key, value, stretches, causal=of == "text")
    one_row = [x.transpose(0, 1).flatten(0, 1)[:, None] for x in inputs]
    expected = by_hand(*one_row, visible_TK[None]).view(batch, length, -1).transpose(0, 1)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    for mine, theirs in zip(
        torch.autograd.grad(found, inputs, up), torch.autograd.grad(expected, inputs, up), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("keys", [0, 7])
def test_where_nobody_sees_anything_every_weight_has_a_gradient_of_zero(keys: int) -> None:
    """A reduction that goes along with the backward pass waits for all of them."""
    query_SBND = torch.randn(5, 2, 4, 8, requires_grad=True)
    key_LBND, value_LBND = (torch.randn(keys, 2, 2, 8, requires_grad=True) for _ in range(2))
    stretches = Stretches.of([(10, 0), (0, 2 * keys)])
    attended_SBH = attention_by_stretch(query_SBND, key_LBND, value_LBND, stretches, causal=False)
    assert attended_SBH.shape == (5, 2, 32) and not attended_SBH.any()
    attended_SBH.sum().backward()
    for tensor in (query_SBND, key_LBND, value_LBND):
        assert tensor.grad is not None and not tensor.grad.any()


def test_a_kernel_is_told_of_grouped_queries_where_it_asks() -> None:
    def before(query: Any, *, window_size: tuple[int, int] = (-1, -1)) -> None:
        """As torch 2.11 has it."""

    assert grouping(before) == {} and grouping(varlen_attn) == {"enable_gqa": True}
    inspect.signature(varlen_attn).bind(*range(7), window_size=(-1, 0), **grouping(varlen_attn))


@pytest.mark.parametrize(("name", "kind"), [("RMSNorm", nn.RMSNorm), ("LayerNorm", nn.LayerNorm)])
@pytest.mark.parametrize("sequence", [True, False])
def test_norms_are_torchs_and_say_whether_their_gradients_are_partial(name: str, kind: type, sequence: bool) -> None:
    config = SimpleNamespace(normalization=name, params_dtype=torch.bfloat16, sequence_parallel=sequence)
    norm = TorchNorm(config, 6, eps=1e-3)
    assert type(norm) is kind and norm.eps == 1e-3
    for parameter in norm.parameters():
        assert parameter.sequence_parallel is sequence and parameter.dtype == torch.bfloat16 and parameter.shape == (6,)


def test_on_the_cpu_everything_is_torchs() -> None:
    provider = spec_provider(transformer_config(toy_config(), Device(torch=torch.device("cpu"))))
    assert isinstance(provider, TorchSpecProvider)
    assert provider.layer_norm(rms_norm=True) is TorchNorm and provider.core_attention() is CausalAttention
