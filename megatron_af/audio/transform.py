"""Audio transformation layers: a small encoder over all tokens of a clip, between HTS-AT and the decoder.

    transform = TransformationLayers(config.model.encoder.feature_dim, config.model.transform)
    tokens_BLD = transform(features_BLD, valid_BL)

    causal = TransformationLayers(dim, config, causal=64)       # each window of 64 tokens sees itself and those before
    kept = Kept()
    tokens_1LD = causal(first_window_1LD, None, kept)           # as the whole clip gives them, window by window
    tokens_1LD = causal(second_window_1LD, None, kept)

Source: Kong et al. 2024 (Audio Flamingo) and Ghosh et al. 2025 (Audio Flamingo 2); details that the
    papers leave open follow the released ``src/helpers.py``. Its dropout on attention probabilities, on
    whatever its configuration says, is left out.

Shapes: B clips, L tokens of the longest clip, D width, N heads, H head dim.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_af.config import TransformConfig
from megatron_af.flops import Tally

NORM_EPS = 1e-6
SINUSOID_BASE = 10_000.0
FRESH_WRITES = 0.1
"""Factor on the first weights of what a layer adds to its input."""
LEAST_ROTATED = 32
"""Rotary positions turn half of each head, but at least this many dimensions."""


@dataclass
class Kept:
    """Of a clip that goes on: keys and values of each layer, [1, N, L, H], of the tokens so far."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[2] if self.layers else 0

    def copy(self) -> "Kept":
        """One that goes on by itself."""
        return Kept(list(self.layers))


class TransformationLayers(nn.Module):
    """Encoder features of clips (B, L, D) -> audio tokens (B, L, D).

    Args:
        causal: tokens of a window, which see their window and those before; 0: a clip's tokens see all of it.
    """

    def __init__(self, dim: int, config: TransformConfig, *, causal: int = 0) -> None:
        super().__init__()
        if dim % config.heads:
            raise ValueError(
                f"model.transform.heads {config.heads} does not divide the encoder's feature width {dim} "
                "(model.encoder.embed_dim x 2 per merging)"
            )
        if config.positions not in ("rope", "sinusoidal"):
            raise ValueError(f"model.transform.positions must be rope or sinusoidal, got {config.positions!r}")
        self.config, self.causal = config, causal
        self.scale = math.sqrt(dim)
        self.layer_norm = nn.LayerNorm(dim, NORM_EPS)
        self.layers = nn.ModuleList(TransformationLayer(dim, config) for _ in range(config.layers))

    def forward(self, features_BLD: Tensor, valid_BL: Tensor | None, kept: Kept | None = None) -> Tensor:
        """
        Args:
            features_BLD: right padded along L.
            valid_BL: True where a token is the clip's own; None when no clip is padded. What stands at
                padding never reaches a valid token.
            kept: of the one clip, what comes before these tokens, whole windows; they are added to it.
        """
        _, L, D = features_BLD.shape
        before = kept.length if kept is not None else 0
        x_BLD = features_BLD * self.scale
        rotation = None
        if self.config.positions == "sinusoidal":
            x_BLD = x_BLD + sinusoids(before + L, D, x_BLD.device)[before:].to(x_BLD.dtype)
        else:
            cos, sin = rotary_table(before + L, D // self.config.heads, self.config.rope_base, x_BLD.device)
            rotation = cos[before:], sin[before:]
        x_BLD = self.layer_norm(x_BLD)
        mask = None if valid_BL is None else valid_BL[:, None, None, :]
        if self.causal and self.causal < L:
            window_K = torch.arange(before + L, device=x_BLD.device) // self.causal
            past_LK = window_K <= window_K[before:, None]
            mask = past_LK if mask is None else mask & past_LK
        for index, layer in enumerate(self.layers):
            x_BLD = layer(x_BLD, rotation, mask, None if kept is None else (kept, index))
        return x_BLD


class TransformationLayer(nn.Module):
    """Post-norm self-attention without biases, then a ReLU feed-forward with them."""

    def __init__(self, dim: int, config: TransformConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.attention_norm = nn.LayerNorm(dim, NORM_EPS)
        self.ffn_in = nn.Linear(dim, config.ffn)
        self.ffn_out = nn.Linear(config.ffn, dim)
        self.ffn_norm = nn.LayerNorm(dim, NORM_EPS)
        for linear in (self.query, self.key, self.value, self.output, self.ffn_in, self.ffn_out):
            nn.init.xavier_uniform_(linear.weight)
        # Fresh layers nearly pass the features on. At full strength three of them leave a third of what tells tokens
        # apart, beside a mean that all share, and the gated blocks find nothing to hold on to.
        for writes in (self.output, self.ffn_out):
            writes.weight.data.mul_(FRESH_WRITES)

    def forward(
        self,
        x_BLD: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        kept: tuple[Kept, int] | None = None,
    ) -> Tensor:
        """
        Args:
            kept: keys and values of what comes before, and which layer's are this one's.
        """
        B, L, D = x_BLD.shape

        def split(y_BLD: Tensor) -> Tensor:
            return y_BLD.view(B, L, self.heads, D // self.heads).transpose(1, 2)

        q_BNLH, k_BNLH, v_BNLH = split(self.query(x_BLD)), split(self.key(x_BLD)), split(self.value(x_BLD))
        if rotation is not None:
            q_BNLH, k_BNLH = rotate(q_BNLH, *rotation), rotate(k_BNLH, *rotation)
        if kept is not None:
            layers, index = kept[0].layers, kept[1]
            if index < len(layers):
                k_BNLH, v_BNLH = torch.cat([layers[index][0], k_BNLH], 2), torch.cat([layers[index][1], v_BNLH], 2)
            layers[index : index + 1] = [(k_BNLH, v_BNLH)]
        attended = F.scaled_dot_product_attention(q_BNLH, k_BNLH, v_BNLH, attn_mask=mask)
        x_BLD = self.attention_norm(x_BLD + self.output(attended.transpose(1, 2).flatten(2)))
        normed: Tensor = self.ffn_norm(x_BLD + self.ffn_out(F.relu(self.ffn_in(x_BLD))))
        return normed


def rotary_table(length: int, head_dim: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin (L, rotated dims / 2), in float32 whatever the model computes in.

    The reference let its training framework round the frequencies to bf16, which is off by up to 3
    radians at the end of five minutes.
    """
    rotated = min(head_dim, max(head_dim // 2, LEAST_ROTATED))
    frequency = base ** (-torch.arange(0, rotated, 2, device=device, dtype=torch.float32) / rotated)
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x_BNLH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn dimension pairs (i, i + half) of the first dimensions of each head; computed in float32."""
    half = cos.shape[-1]
    first, second = x_BNLH[..., :half].float(), x_BNLH[..., half : 2 * half].float()
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return torch.cat([turned.to(x_BNLH.dtype), x_BNLH[..., 2 * half :]], -1)


def sinusoids(length: int, dim: int, device: torch.device) -> Tensor:
    """Fixed positions (L, D) of Vaswani et al. 2017, sine and cosine interleaved."""
    frequency = SINUSOID_BASE ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


def tally_transform(tally: Tally, x: bool, dim: int, config: TransformConfig) -> bool:
    """The layers' products for clips; returns whether a gradient flows into the audio tokens.

    Args:
        x: one flows into the features.
    """
    x = tally.passes(x, "transform.layer_norm.weight", "transform.layer_norm.bias")
    for layer in range(config.layers):
        at = f"transform.layers.{layer}"
        query, key, value = (
            tally.linear(x, f"{at}.{name}", dim**2, "clip_tokens") for name in ("query", "key", "value")
        )
        y = tally.attention(query, key, value, dim, "clip_scores")
        x = tally.linear(y, f"{at}.output", dim**2, "clip_tokens") or x
        x = tally.passes(x, f"{at}.attention_norm.weight", f"{at}.attention_norm.bias")
        y = x
        for name in ("ffn_in", "ffn_out"):
            y = tally.linear(y, f"{at}.{name}", dim * config.ffn, "clip_tokens", bias=True)
        x = tally.passes(x or y, f"{at}.ffn_norm.weight", f"{at}.ffn_norm.bias")
    return x
