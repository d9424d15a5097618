"""From mel windows to audio tokens: HTS-AT on every window, then layers over all windows of a recording.

    tower = AudioTower(config)
    tokens = tower(mel_WFM, rows=[[3], [1, 2]])    # a tensor (tokens, width) for each recording

Sources: Chen et al. 2022 (HTS-AT), Liu et al. 2021 (Swin), Ghosh et al. 2025 (Audio Flamingo 2).

Shapes: W windows, F frames, M mel bins, R rows = columns of the patch grid, P attention windows of a grid, T patches of
an attention window, N heads, H head dim, B recordings, L audio tokens, D width.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .configuration_audio_flamingo import AudioSizes

IMAGE_SIDE = 256
"""A window is stretched and folded to a square image of this many rows (HTS-AT, section 2.1)."""
SILENCE_DB = -100.0
"""Of a window of which nothing is heard."""
WINDOWS_AT_ONCE = 128
"""That go through the encoder together: bounds memory for many long recordings."""


class AudioTower(nn.Module):
    def __init__(self, config: AudioSizes) -> None:
        super().__init__()
        self.encoder = HTSAT(config.audio_encoder)
        self.transform = TransformationLayers(config.audio_width, config.audio_transform)
        self.sees: str = config.audio_transform["sees"]
        self.row_windows: int = config.audio_transform["row_windows"]

    def forward(self, mel_WFM: Tensor, rows: list[list[int]]) -> list[Tensor]:
        """Audio tokens (L, D) of each recording.

        Args:
            mel_WFM: dB mel windows of all recordings, one after another.
            rows: of each text, the number of windows of each of its recordings.
        """
        windows = [count for row in rows for count in row]
        if not windows:
            return []
        features_WLD = torch.cat([self.encoder(part) for part in torch.split(mel_WFM, WINDOWS_AT_ONCE)])
        recordings = list(torch.split(features_WLD, windows))
        if self.sees == "row":
            silence_1FM = torch.full_like(mel_WFM[:1], SILENCE_DB)
            waiting, silence_LD = iter(recordings), self.encoder(silence_1FM)[0]
            return [
                tokens_LD for row in rows for tokens_LD in self._together([next(waiting) for _ in row], silence_LD)
            ]
        flat = [part_WLD.flatten(0, 1) for part_WLD in recordings]
        lengths = torch.tensor([len(tokens_LD) for tokens_LD in flat])
        valid_BL = (torch.arange(int(lengths.max())) < lengths[:, None]).to(mel_WFM.device)
        rows_BLD = self.transform(pad_sequence(flat, batch_first=True), valid_BL)
        return [row_LD[:length] for row_LD, length in zip(rows_BLD, lengths.tolist(), strict=True)]

    def _together(self, recordings: list[Tensor], silence_LD: Tensor) -> list[Tensor]:
        """The recordings of one text in one run of the layers, each with silence behind it: later ones and silence
        reach the tokens of earlier ones, as in the weights that were trained so."""
        if not recordings:
            return []
        slots_RWLD = silence_LD.repeat(len(recordings), self.row_windows, 1, 1)
        for slot_WLD, features_WLD in zip(slots_RWLD, recordings, strict=True):
            slot_WLD[: len(features_WLD)] = features_WLD
        flat_1LD = slots_RWLD.flatten(0, 2)[None]
        everything_1L = torch.ones(flat_1LD.shape[:2], dtype=torch.bool, device=flat_1LD.device)
        tokens_RLD = self.transform(flat_1LD, everything_1L)[0].view(len(recordings), -1, flat_1LD.shape[-1])
        return [
            tokens_LD[: features_WLD.shape[0] * features_WLD.shape[1]]
            for tokens_LD, features_WLD in zip(tokens_RLD, recordings, strict=True)
        ]


class HTSAT(nn.Module):
    """dB mel windows (W, F, M) -> features (W, L, D); L = 64 tokens of a 10 s window in the published sizes."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        self.folds = IMAGE_SIDE // sizes["mel_bins"]
        self.bn0 = MelNorm(sizes["mel_bins"])
        rows, dim = IMAGE_SIDE // sizes["patch_size"], sizes["embed_dim"]
        self.patch_embed = PatchEmbedding(dim, sizes["patch_size"])
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, rows, rows, dim)) if sizes["absolute_positions"] else None
        stages = len(sizes["depths"])
        self.layers = nn.ModuleList(
            SwinStage(dim * 2**i, rows // 2**i, depth, heads, sizes, merges=i + 1 < stages)
            for i, (depth, heads) in enumerate(zip(sizes["depths"], sizes["heads"], strict=True))
        )
        width = dim * 2 ** (stages - 1)
        self.norm = nn.LayerNorm(width)
        self.projection = _projection(sizes["vector"], width, sizes["vector_dim"])

    def forward(self, mel_WFM: Tensor) -> Tensor:
        x_WRRD = self.patch_embed(self._folded(self.bn0(mel_WFM)).to(self.norm.weight.dtype))
        if self.absolute_pos_embed is not None:
            x_WRRD = x_WRRD + self.absolute_pos_embed
        for layer in self.layers:
            x_WRRD = layer(x_WRRD)
        W, R, _, D = x_WRRD.shape
        # Rows of the grid are (fold of time, part of the frequencies): bring each part's time steps together.
        x_WLD = x_WRRD.view(W, self.folds, R // self.folds, R, D).transpose(1, 2).reshape(W, R * R, D)
        features_WLD: Tensor = self.norm(x_WLD)
        if self.projection is not None:
            features_WLD = self.projection(features_WLD.mean(1, keepdim=True))
        return features_WLD

    def _folded(self, mel_WFM: Tensor) -> Tensor:
        """Stretched to 256 x folds frames, the quarters below each other: (W, 1, 256, 256)."""
        W, _, M = mel_WFM.shape
        size = (M, IMAGE_SIDE * self.folds)
        stretched = F.interpolate(mel_WFM.transpose(1, 2)[:, None], size, mode="bicubic", align_corners=True)
        return stretched.view(W, M, self.folds, IMAGE_SIDE).transpose(1, 2).reshape(W, 1, IMAGE_SIDE, IMAGE_SIDE)


class MelNorm(nn.Module):
    """Normalises each mel bin by fixed statistics, in float32 whatever the rest computes in."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, mel_bins: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(mel_bins)), nn.Parameter(torch.zeros(mel_bins))
        self.register_buffer("running_mean", torch.zeros(mel_bins))
        self.register_buffer("running_var", torch.ones(mel_bins))

    def forward(self, mel_WFM: Tensor) -> Tensor:
        scale = self.weight.float() * torch.rsqrt(self.running_var.float() + self.eps)
        return (mel_WFM.float() - self.running_mean.float()) * scale + self.bias.float()


class PatchEmbedding(nn.Module):
    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, dim, patch, stride=patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        x_WRRD: Tensor = self.norm(self.proj(image).permute(0, 2, 3, 1))
        return x_WRRD


class SwinStage(nn.Module):
    """Blocks on one grid; then 2 x 2 patches become one, but behind the last."""

    def __init__(self, dim: int, rows: int, depth: int, heads: int, sizes: dict[str, Any], *, merges: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(dim, rows, heads, sizes, shifted=j % 2 == 1) for j in range(depth))
        self.downsample = PatchMerging(dim) if merges else None

    def forward(self, x_WRRD: Tensor) -> Tensor:
        for block in self.blocks:
            x_WRRD = block(x_WRRD)
        return x_WRRD if self.downsample is None else self.downsample(x_WRRD)


class SwinBlock(nn.Module):
    """Attention inside windows of the grid and a feed-forward; every second block on a grid shifted by half a window.

    Indices and masks are made in the forward pass: weights that are loaded later do not bring them along.
    """

    def __init__(self, dim: int, rows: int, heads: int, sizes: dict[str, Any], *, shifted: bool) -> None:
        super().__init__()
        self.rows, self.side = rows, min(sizes["window_size"], rows)
        self.shift = self.side // 2 if shifted and rows > sizes["window_size"] else 0
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, self.side)
        self.mlp = FeedForward(dim, sizes["mlp_ratio"] * dim)

    def forward(self, x_WRRD: Tensor) -> Tensor:
        y = torch.roll(self.norm1(x_WRRD), (-self.shift, -self.shift), (1, 2))
        mask_PTT = self._mask(x_WRRD.device) if self.shift else None
        y = self._join(self.attn(self._split(y), mask_PTT))
        x_WRRD = x_WRRD + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x_WRRD + self.mlp(self.norm2(x_WRRD))

    def _mask(self, device: torch.device) -> Tensor:
        """Scores (P, T, T) against what only the shift put side by side; -100 as in training, not -inf."""
        position = torch.arange(self.rows, device=device)
        band = (position >= self.rows - self.side).int() + (position >= self.rows - self.shift).int()
        region_PT = self._split((3 * band[:, None] + band)[None, :, :, None])[0, :, :, 0]
        return torch.where(region_PT[:, None] == region_PT[:, :, None], 0.0, -100.0)

    def _split(self, x_WRRD: Tensor) -> Tensor:
        (W, R, _, D), s = x_WRRD.shape, self.side
        return x_WRRD.view(W, R // s, s, R // s, s, D).transpose(2, 3).reshape(W, (R // s) ** 2, s * s, D)

    def _join(self, x_WPTD: Tensor) -> Tensor:
        (W, _, _, D), R, s = x_WPTD.shape, self.rows, self.side
        return x_WPTD.view(W, R // s, R // s, s, s, D).transpose(2, 3).reshape(W, R, R, D)


class WindowAttention(nn.Module):
    """Attention among the T patches of a window, with a learnt bias for each relative position (Swin, 3.2)."""

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, heads))

    def forward(self, x_WPTD: Tensor, mask_PTT: Tensor | None) -> Tensor:
        W, P, T, D = x_WPTD.shape
        N = self.heads
        bias_NTT = self.relative_position_bias_table[self._relative_positions(x_WPTD.device)].permute(2, 0, 1)
        bias = bias_NTT.expand(P, N, T, T) if mask_PTT is None else bias_NTT + mask_PTT[:, None]
        qkv = self.qkv(x_WPTD).view(W, P, T, 3, N, D // N).permute(3, 0, 1, 4, 2, 5)
        query, key, value = qkv.reshape(3, W, P * N, T, D // N)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.reshape(1, P * N, T, T).to(query.dtype))
        merged: Tensor = self.proj(out.view(W, P, N, T, D // N).transpose(2, 3).reshape(W, P, T, D))
        return merged

    def _relative_positions(self, device: torch.device) -> Tensor:
        """Rows (T, T) of the table."""
        place = torch.arange(self.side, device=device)
        row, column = (grid.flatten() for grid in torch.meshgrid(place, place, indexing="ij"))
        steps = 2 * self.side - 1
        return (row[:, None] - row + self.side - 1) * steps + column[:, None] - column + self.side - 1


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class PatchMerging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x_WRRD: Tensor) -> Tensor:
        W, R, _, D = x_WRRD.shape
        quads = x_WRRD.view(W, R // 2, 2, R // 2, 2, D).permute(0, 1, 3, 4, 2, 5)  # column before row in each patch
        merged: Tensor = self.reduction(self.norm(quads.reshape(W, R // 2, R // 2, 4 * D)))
        return merged


class ResidualProjection(nn.Module):
    """ClapCap's: two linear layers, the second on top of the first one's output."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, out, bias=False), nn.Linear(out, out, bias=False)
        self.layer_norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        first = self.linear1(x)
        projected: Tensor = self.layer_norm(first + self.linear2(F.gelu(first)))
        return projected


def _projection(kind: str, width: int, out: int) -> nn.Module | None:
    if kind == "residual":
        return ResidualProjection(width, out)
    return nn.Sequential(nn.Linear(width, out), nn.ReLU(), nn.Linear(out, out)) if kind == "mlp" else None


class TransformationLayers(nn.Module):
    """A small encoder over all tokens of a recording: (B, L, D) -> (B, L, D)."""

    def __init__(self, dim: int, sizes: dict[str, Any]) -> None:
        super().__init__()
        self.sizes, self.head_dim = sizes, dim // sizes["heads"]
        self.layer_norm = nn.LayerNorm(dim, 1e-6)
        self.layers = nn.ModuleList(TransformationLayer(dim, sizes) for _ in range(sizes["layers"]))

    def forward(self, features_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """
        Args:
            valid_BL: True where a token is the recording's own.
        """
        _, L, D = features_BLD.shape
        x_BLD, rotation = features_BLD * math.sqrt(D), None
        if self.sizes["positions"] == "sinusoidal":
            x_BLD = x_BLD + _sinusoids(L, D, x_BLD.device).to(x_BLD.dtype)
        else:
            rotation = _rotations(L, self.head_dim, self.sizes["rope_base"], x_BLD.device)
        x_BLD = self.layer_norm(x_BLD)
        for layer in self.layers:
            x_BLD = layer(x_BLD, rotation, valid_BL[:, None, None, :])
        return x_BLD


class TransformationLayer(nn.Module):
    def __init__(self, dim: int, sizes: dict[str, Any]) -> None:
        super().__init__()
        self.heads = sizes["heads"]
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.attention_norm, self.ffn_norm = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.ffn_in, self.ffn_out = nn.Linear(dim, sizes["ffn"]), nn.Linear(sizes["ffn"], dim)

    def forward(self, x_BLD: Tensor, rotation: tuple[Tensor, Tensor] | None, mask_B11L: Tensor) -> Tensor:
        query, key, value = (
            linear(x_BLD).view(*x_BLD.shape[:2], self.heads, -1).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        if rotation is not None:
            query, key = _rotated(query, *rotation), _rotated(key, *rotation)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_B11L)
        x_BLD = self.attention_norm(x_BLD + self.output(attended.transpose(1, 2).flatten(2)))
        normed: Tensor = self.ffn_norm(x_BLD + self.ffn_out(F.relu(self.ffn_in(x_BLD))))
        return normed


def _rotations(length: int, head_dim: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin (L, rotated / 2) of half of each head, of at least 32 dimensions; always in float32."""
    rotated = min(head_dim, max(head_dim // 2, 32))
    frequency = base ** (-torch.arange(0, rotated, 2, device=device, dtype=torch.float32) / rotated)
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency
    return angle.cos(), angle.sin()


def _rotated(x_BNLH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    first, second = x_BNLH[..., :half].float(), x_BNLH[..., half : 2 * half].float()
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return torch.cat([turned.to(x_BNLH.dtype), x_BNLH[..., 2 * half :]], -1)


def _sinusoids(length: int, dim: int, device: torch.device) -> Tensor:
    frequency = 10_000.0 ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
