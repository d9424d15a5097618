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
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from megatron_af.audio.encoder import encoder_of
from megatron_af.config import ModelConfig
from megatron_af.decoder.cross_attention import AudioCrossAttention

Floats = NDArray[np.float64]


def attention_weights(
    module: AudioCrossAttention, x_SBH: Tensor, audio_LBD: Tensor, mask_B1SL: Tensor | None
) -> Tensor:
    """What the fused kernel multiplies the values by, [B, N, S, L], null keys of the mask included."""
    query_SBNK = module.linear_q(x_SBH)[0].unflatten(-1, (-1, module.head_dim))
    key_LBNK = module.linear_kv(audio_LBD)[0].unflatten(-1, (-1, 2 * module.head_dim))[..., : module.head_dim]
    if mask_B1SL is not None:
        key_LBNK = F.pad(key_LBNK, (0, 0, 0, 0, 0, 0, 0, mask_B1SL.shape[-1] - audio_LBD.shape[0]))
    scores_BNSL = torch.einsum("sbnk,lbnk->bnsl", query_SBNK, key_LBNK).float() * module.head_dim**-0.5
    if mask_B1SL is not None:
        scores_BNSL = scores_BNSL + mask_B1SL.float()
    return scores_BNSL.softmax(-1)


@contextmanager
def recorded(decoder: nn.Module) -> Iterator[list[Tensor]]:
    """While open, every gated block adds its attention to the list: mean over heads, [B, S, L], on the host."""
    layers: list[Tensor] = []

    def record(module: AudioCrossAttention, inputs: tuple[Any, ...], output: Tensor) -> None:
        weights_BNSL = attention_weights(module, *inputs)
        layers.append(weights_BNSL[..., : inputs[1].shape[0]].mean(1).cpu())

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
