"""Floating-point operations that one step of training really executes, for the model-FLOPs-utilisation figure.

A weight that is multiplied with n vectors costs 2n operations forward, 2n for the gradient of the input and 2n for
its own gradient; the last is not executed where the weight is frozen, nor the second below the first trainable
parameter. Attention scores are counted with their full length (no causal saving), as is customary.
"""

import time

import torch

from megatron_af.config import Config, StageConfig
from megatron_af.parallel.device import Device
from megatron_af.train.trainable import is_trainable

PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""Dense bfloat16 peak of GPUs by a part of their name, from NVIDIA's data sheets."""


def step_flops(config: Config, stage: StageConfig, text_tokens: float, windows: float, *, encode: bool = True) -> float:
    """Operations of one step over all ranks.

    Args:
        text_tokens: text positions of the global batch.
        windows: audio windows of the global batch.
        encode: the encoder runs (False: its features came from the cache).
    """
    model = config.model
    lm, cross = model.lm, model.cross_attention
    dim = model.encoder.feature_dim
    audio_tokens = windows * model.encoder.tokens_per_window

    def passes(name: str) -> int:
        return 3 if is_trainable(name, stage.trainable, stage.frozen) else 2

    head_dim = lm.hidden // lm.heads
    lm_layer = lm.hidden * (2 * lm.hidden + 2 * lm.kv_heads * head_dim) + 3 * lm.hidden * lm.ffn
    # The output layer runs on supervised tokens only; counted whole it would flatter.
    flops = 2 * passes("lm.decoder.layers.0.mlp.linear_fc1.weight") * lm.layers * lm_layer * text_tokens
    blocks = lm.layers // cross.interval
    inner = cross.heads * cross.head_dim
    on_text = 2 * lm.hidden * inner + 2 * cross.ffn_multiplier * lm.hidden**2
    block_passes = passes("lm.decoder.layers.0.xattn.linear_q.weight")
    flops += 2 * block_passes * blocks * (on_text * text_tokens + 2 * dim * inner * audio_tokens)
    transform_passes = passes("transform.layer_stack.0.slf_attn.w_qs.weight")
    flops += 2 * transform_passes * model.transform.layers * (4 * dim**2 + 2 * dim * model.transform.ffn) * audio_tokens
    return float(flops + (encoder_flops(config, stage, windows) if encode else 0))


def encoder_flops(config: Config, stage: StageConfig, windows: float) -> float:
    """Operations of the encoder alone in one step over all ranks."""
    passes = 3 if is_trainable("encoder.norm.weight", stage.trainable, stage.frozen) else 1
    return float(2 * passes * _encoder_weights_times_tokens(config) * windows)


def _encoder_weights_times_tokens(config: Config) -> float:
    """Sum over HTS-AT's stages of weights per block x tokens it works on, for one window."""
    encoder = config.model.encoder
    side = 256 // encoder.patch_size
    total = 0.0
    for stage, depth in enumerate(encoder.depths):
        dim, tokens = encoder.embed_dim * 2**stage, (side // 2**stage) ** 2
        total += depth * (4 + 2 * encoder.mlp_ratio) * dim**2 * tokens
        if stage < len(encoder.depths) - 1:
            total += 8 * dim**2 * tokens / 4
    return total


def peak_flops(precision: str, device: Device) -> float:
    """Peak of this process's device: from the data sheet for a known GPU, else of a measured matrix product."""
    if device.is_gpu and precision == "bf16":
        for part, peak in PEAK_BF16.items():
            if part in device.name:
                return peak
    size = 4096 if device.is_gpu else 512
    matrix = torch.randn(size, size, device=device.torch)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # reading a value waits for the product
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
