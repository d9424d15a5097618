"""The gated block against a plain statement of Audio Flamingo 2's, and when it is left out."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_af.decoder.cross_attention import rounded
from megatron_af.decoder.stretches import Stretches
from megatron_af.parallel.global_state import load_global
from tests.decoder.toy import (
    ADDED,
    AUDIO_DIM,
    HIDDEN,
    full_audio,
    open_gates,
    plain_rows,
    relative_error,
    single_process_lm,
    toy_config,
)
from tests.distributed import run_distributed

pytestmark = pytest.mark.slow

HEADS, HEAD_DIM = 2, 24


def stated(weight: dict[str, Tensor], x_SBH: Tensor, audio_LBD: Tensor, visible_BSL: Tensor) -> Tensor:
    """The block with materialised scores; a position that sees nothing hears 0."""
    norm_x = F.layer_norm(x_SBH, (HIDDEN,), weight["attention_norm.weight"], weight["attention_norm.bias"], 1e-5)
    query = (norm_x @ weight["attention.linear_q.weight"].t()).unflatten(-1, (HEADS, HEAD_DIM))
    key_value = (audio_LBD @ weight["attention.linear_kv.weight"].t()).unflatten(-1, (HEADS, 2, HEAD_DIM))
    scores = torch.einsum("sbnd,lbnd->bnsl", query, key_value[..., 0, :]) / HEAD_DIM**0.5
    scores = scores.masked_fill(~visible_BSL[:, None], float("-inf")).softmax(-1).nan_to_num()
    heard = torch.einsum("bnsl,lbnd->sbnd", scores, key_value[..., 1, :]).flatten(2)
    x_SBH = x_SBH + weight["gate_attn"].tanh() * (heard @ weight["attention.linear_proj.weight"].t())
    norm_x = F.layer_norm(x_SBH, (HIDDEN,), weight["ffn_norm.weight"], weight["ffn_norm.bias"], 1e-5)
    inner = F.gelu(norm_x @ weight["ffn.linear_fc1.weight"].t())
    return x_SBH + weight["gate_ffn"].tanh() * (inner @ weight["ffn.linear_fc2.weight"].t())


def block_equals_its_statement(rank: int, world_size: int) -> None:
    lm = single_process_lm(toy_config())
    load_global([lm], None, open_gates)
    block = lm.decoder.layers[1].xattn
    generator = torch.Generator().manual_seed(0)
    x_SBH = torch.randn(5, 3, HIDDEN, generator=generator, requires_grad=True)
    audio_LBD = torch.randn(11, 3, AUDIO_DIM, generator=generator, requires_grad=True)
    first = torch.zeros(3, 5, dtype=torch.int32)
    last = torch.tensor([[-1, 0, 0, 1, 1], [0] * 5, [-1] * 5], dtype=torch.int32)
    audio_of = torch.tensor([[0] * 4 + [1] * 5 + [-1] * 2, [0] * 11, [0] * 11], dtype=torch.int32)
    visible = (
        (audio_of[:, None] >= 0) & (audio_of[:, None] >= first[..., None]) & (audio_of[:, None] <= last[..., None])
    )
    rows = dataclasses.replace(plain_rows(3, 5), first_audio_BS=first, last_audio_BS=last)
    found = block(x_SBH, audio_LBD, Stretches.of_audio(rows, audio_of))
    expected = stated(dict(block.named_parameters()), x_SBH, audio_LBD, visible)
    assert relative_error(found, expected) < 1e-6
    up = torch.randn(found.shape, generator=generator)
    inputs = {"x": x_SBH, "audio": audio_LBD, **dict(block.named_parameters())}
    found_gradients = torch.autograd.grad((found * up).sum(), list(inputs.values()))
    expected_gradients = torch.autograd.grad((expected * up).sum(), list(inputs.values()))
    for name, found_gradient, gradient in zip(inputs, found_gradients, expected_gradients, strict=True):
        assert relative_error(found_gradient, gradient) < 1e-5, name


def test_block_equals_its_statement():
    run_distributed(block_equals_its_statement, 1)


@pytest.mark.parametrize("shared", [True, False])
def test_layers_sum_the_gradients_of_the_audio_in_float32(shared: bool):
    """1 + 256 * 2^-9 = 1.5, but in bf16 1 + 2^-9 is 1 again and again."""
    tokens = torch.ones(3, 1, 4, requires_grad=True)
    audio = tokens.view_as(tokens)
    if shared:
        audio.rounded_copy = audio.detach().bfloat16()
    layers = [rounded(audio, torch.bfloat16) for _ in range(257)]
    assert len({layer.data_ptr() for layer in layers}) == (1 if shared else 257)
    sizes = [1.0, *[2.0**-9] * 256]
    torch.autograd.backward([layer.sum() * size for layer, size in zip(layers, sizes, strict=True)])
    assert torch.equal(tokens.grad, torch.full_like(tokens, 1.5))


def identity_blocks_are_left_out(rank: int, world_size: int) -> None:
    rows, audio, added = plain_rows(), full_audio(), torch.zeros(ADDED, HIDDEN)
    lm = single_process_lm(toy_config())
    assert lm.skip_identity_blocks() == 0, "blocks that train stay"
    before = lm.logits(rows, audio, added)
    for name, parameter in lm.named_parameters():
        parameter.requires_grad = ".xattn." not in name
    assert lm.skip_identity_blocks() == 2
    assert torch.equal(lm.logits(rows, audio, added), before)
    with torch.no_grad():
        lm.decoder.layers[1].xattn.gate_ffn.fill_(0.1)
    assert lm.skip_identity_blocks() == 1, "an open gate keeps its block"


def test_frozen_blocks_with_closed_gates_cost_nothing():
    run_distributed(identity_blocks_are_left_out, 1)
