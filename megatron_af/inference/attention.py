"""Attention of a model's gated blocks, as it answers; ``looks.py`` holds and draws what is made of it.

    with recorded(decoder) as layers:            # one tensor per gated block, of each forward pass
        decoder.logits(rows, keys, added_rows)

Shapes: S text positions, B rows, L audio tokens, N heads, K head dim, T answer tokens, D audio width, H hidden.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from megatron_af.audio.encoder import encoder_of
from megatron_af.config import ModelConfig
from megatron_af.decoder.cross_attention import AudioCrossAttention
from megatron_af.decoder.stretches import Stretches

Floats = NDArray[np.float64]


def attention_weights(
    module: AudioCrossAttention, x_SBH: Tensor, audio_LBD: Tensor, stretches: Stretches | None
) -> Tensor:
    """What the fused kernel multiplies the values by, [B, N, S, L]; 0 where a position sees nothing."""
    query_SBNK = module.linear_q(x_SBH)[0].unflatten(-1, (-1, module.head_dim))
    key_LBNK = module.linear_kv(audio_LBD)[0].unflatten(-1, (-1, 2 * module.head_dim))[..., : module.head_dim]
    scores_BNSL = torch.einsum("sbnk,lbnk->bnsl", query_SBNK, key_LBNK).float() * module.head_dim**-0.5
    if stretches is None:
        return scores_BNSL.softmax(-1)
    hidden_B1SL = ~_visible(stretches, len(x_SBH), *audio_LBD.shape[:2])[:, None].to(scores_BNSL.device)
    return scores_BNSL.masked_fill(hidden_B1SL, float("-inf")).softmax(-1).nan_to_num(0.0)


def _visible(stretches: Stretches, positions: int, keys: int, rows: int) -> Tensor:
    """Which keys of its row a position sees, bool [B, S, L]: as a mask, which only pictures need."""
    visible_TK = torch.zeros(rows * positions, rows * keys, dtype=torch.bool)
    index_K = torch.arange(rows * keys) if stretches.index_K is None else stretches.index_K.cpu()
    position = key = 0
    for count, seen in zip(stretches.queries, stretches.keys, strict=True):
        visible_TK[position : position + count, index_K[key : key + seen]] = True
        position, key = position + count, key + seen
    return visible_TK.view(rows, positions, rows, keys).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


@contextmanager
def recorded(decoder: nn.Module) -> Iterator[list[Tensor]]:
    """While open, every gated block adds its attention to the list: mean over heads, [B, S, L], on the host."""
    layers: list[Tensor] = []

    def record(module: AudioCrossAttention, inputs: tuple[Any, ...], output: Tensor) -> None:
        layers.append(attention_weights(module, *inputs).mean(1).cpu())

    hooks = [m.register_forward_hook(record) for m in decoder.modules() if isinstance(m, AudioCrossAttention)]
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()


def token_seconds(model: ModelConfig, windows: int) -> Floats:
    """When the part of a clip begins that each of its audio tokens was made of, [windows * tokens_per_window].

    A window's tokens come band by band, each in the order of time (``AudioEncoder.time_steps``).
    """
    encoder, front = encoder_of(model.encoder), model.front_end
    steps = encoder.time_steps
    within_window = np.arange(encoder.tokens_per_window) % steps * (front.window_seconds / steps)
    starts = np.arange(windows) * (front.window_seconds - front.overlap_seconds)
    return (starts[:, None] + within_window).reshape(-1)
