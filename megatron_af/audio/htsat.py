"""HTS-AT, the audio encoder of CLAP and Audio Flamingo: a Swin transformer over log-mel windows.

A 10 s window of 1001 frames x 64 mel bins becomes 64 tokens. Windows of any number of clips form one batch:

    encoder = HTSAT(config.model.front_end, config.model.encoder)
    features_WLD = encoder(mel_WFM)      # dB mel windows -> (W, 64, feature_dim)

Parameter names are those of the released AF-CLAP and LAION-CLAP weights. Source: Chen et al. 2022 (HTS-AT);
Liu et al. 2021 (Swin); the released ``clap_module/htsat.py`` for every choice that the papers leave open.

Shapes: W windows, F frames, M mel bins, L tokens, D feature dim, R rows = columns of the patch grid,
P attention windows of a grid, T tokens of an attention window, N heads.
"""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_af.audio.augment import SpecAugment
from megatron_af.audio.htsat_encoder import IMAGE_SIDE, HTSATEncoder
from megatron_af.audio.mel_norm import MelNorm
from megatron_af.audio.projection import projection
from megatron_af.audio.recompute import recomputed
from megatron_af.config import EncoderConfig, FrontEndConfig

MASKED = -100.0
"""Score between patches that only the cyclic shift made neighbours; released weights saw -100, not -inf."""


class PatchEmbedding(nn.Module):
    """Non-overlapping patches of the folded mel image, (W, 1, 256, 256) -> (W, R, R, D)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        patch, dim = config.patch_size, config.embed_dim
        self.proj = nn.Conv2d(1, dim, patch, stride=patch)
        self.norm = nn.LayerNorm(dim)
        if config.fusion:
            self.mel_conv2d = nn.Conv2d(1, dim, (patch, 3 * patch), stride=(patch, 3 * patch))
            self.fusion_model = FeatureFusion(dim)

    def forward(self, image: Tensor, parts: Tensor | None = None, longer_W: Tensor | None = None) -> Tensor:
        """
        Args:
            parts: images (W, V, 1, 256, 256) of windows out of a longer clip, of which ``image`` is the whole.
            longer_W: which clips are longer; the others' parts are not heard.
        """
        x_WDRR = self.proj(image)
        if parts is not None and longer_W is not None:
            W, V = parts.shape[:2]
            # Patches of three times the length: the parts, side by side, are as many columns as the whole, or fewer.
            beside = self.mel_conv2d(parts.flatten(0, 1))
            beside = beside.view(W, V, *beside.shape[1:]).permute(0, 2, 3, 1, 4).flatten(3)
            beside = F.pad(beside, (0, x_WDRR.shape[3] - beside.shape[3]))
            x_WDRR = torch.where(longer_W[:, None, None, None], self.fusion_model(x_WDRR, beside), x_WDRR)
        normed: Tensor = self.norm(x_WDRR.permute(0, 2, 3, 1))
        return normed


class FeatureFusion(nn.Module):
    """LAION-CLAP's attentional feature fusion (Dai et al. 2021): how much of the whole clip, how much of its parts.

    Its norms keep the published statistics, whatever ``train()`` says. Where clips are heard in windows it is carried
    through conversions and never runs.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = dim // 4

        def squeeze() -> list[nn.Module]:
            return [
                nn.Conv2d(dim, inner, 1),
                nn.BatchNorm2d(inner),
                nn.ReLU(),
                nn.Conv2d(inner, dim, 1),
                nn.BatchNorm2d(dim),
            ]

        self.local_att = nn.Sequential(*squeeze())
        self.global_att = nn.Sequential(nn.AdaptiveAvgPool2d(1), *squeeze())

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def forward(self, whole: Tensor, parts: Tensor) -> Tensor:
        both = whole + parts
        share = torch.sigmoid(self.local_att(both) + self.global_att(both))
        return 2 * whole * share + 2 * parts * (1 - share)


class _Carried(nn.Module):
    """One tensor of the released weights that nothing computes with."""

    def __init__(self, *shape: int, name: str = "weight") -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


class WindowAttention(nn.Module):
    """Attention inside windows of T patches with a learnt bias per relative position (Swin section 3.2)."""

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, side: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        position = torch.arange(side)
        row, column = (grid.flatten() for grid in torch.meshgrid(position, position, indexing="ij"))
        row_step = row[:, None] - row + side - 1
        column_step = column[:, None] - column + side - 1
        index = row_step * (2 * side - 1) + column_step
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, x_WPTD: Tensor, mask_PTT: Tensor | None) -> Tensor:
        W, P, T, D = x_WPTD.shape
        N = self.num_heads
        bias_NTT = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        bias = bias_NTT.expand(P, N, T, T) if mask_PTT is None else bias_NTT + mask_PTT[:, None]
        # P joins the heads, so that one bias is broadcast over the windows instead of copied for each.
        qkv = self.qkv(x_WPTD).view(W, P, T, 3, N, D // N).permute(3, 0, 1, 4, 2, 5)
        query, key, value = qkv.reshape(3, W, P * N, T, D // N)
        mask = bias.reshape(1, P * N, T, T).to(query.dtype)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        merged: Tensor = self.proj(out.view(W, P, N, T, D // N).transpose(2, 3).reshape(W, P, T, D))
        return merged


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class DropPath(nn.Module):
    """Stochastic depth: leaves a residual branch out for whole windows, in training only."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class SwinBlock(nn.Module):
    """Window attention and feed-forward, pre-norm; every second block on a grid shifted by half a window."""

    attn_mask: Tensor | None

    def __init__(
        self, dim: int, num_heads: int, rows: int, shifted: bool, drop_path: float, config: EncoderConfig
    ) -> None:
        super().__init__()
        self.rows = rows
        self.side = min(config.window_size, rows)
        self.shift = self.side // 2 if shifted and rows > config.window_size else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, self.side)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, config.mlp_ratio * dim)
        self.register_buffer("attn_mask", self._shift_mask() if self.shift else None, persistent=False)

    def _shift_mask(self) -> Tensor:
        """(P, T, T) scores that separate what the cyclic shift put into one window from across the border."""
        position = torch.arange(self.rows)
        band = (position >= self.rows - self.side).int() + (position >= self.rows - self.shift).int()
        region = (3 * band[:, None] + band)[None, :, :, None]
        region_PT = self._split(region)[0, :, :, 0]
        return torch.where(region_PT[:, None] == region_PT[:, :, None], 0.0, MASKED)

    def _split(self, x_WRRD: Tensor) -> Tensor:
        W, R, _, D = x_WRRD.shape
        s = self.side
        return x_WRRD.view(W, R // s, s, R // s, s, D).transpose(2, 3).reshape(W, (R // s) ** 2, s * s, D)

    def _join(self, x_WPTD: Tensor) -> Tensor:
        W, _, _, D = x_WPTD.shape
        R, s = self.rows, self.side
        return x_WPTD.view(W, R // s, R // s, s, s, D).transpose(2, 3).reshape(W, R, R, D)

    def forward(self, x_WRRD: Tensor) -> Tensor:
        y = self.norm1(x_WRRD)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = self._join(self.attn(self._split(y), self.attn_mask))
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x_WRRD = x_WRRD + self.drop_path(y)
        return x_WRRD + self.drop_path(self.mlp(self.norm2(x_WRRD)))


class PatchMerging(nn.Module):
    """Halves the grid: 2 x 2 patches of D become one of 2 D."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x_WRRD: Tensor) -> Tensor:
        W, R, _, D = x_WRRD.shape
        # Column before row inside the 2 x 2 patch: the order of the released weights.
        quads = x_WRRD.view(W, R // 2, 2, R // 2, 2, D).permute(0, 1, 3, 4, 2, 5)
        merged: Tensor = self.reduction(self.norm(quads.reshape(W, R // 2, R // 2, 4 * D)))
        return merged


class SwinLayer(nn.Module):
    """Blocks of one resolution, then patch merging unless it is the last."""

    def __init__(self, blocks: list[SwinBlock], merging: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = merging

    def forward(self, x_WRRD: Tensor, run: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        for block in self.blocks:
            x_WRRD = run(block, x_WRRD)
        return x_WRRD if self.downsample is None else self.downsample(x_WRRD)


class HTSAT(nn.Module):
    """Log-mel windows (W, F, M) in dB -> token features (W, L, D) after the last norm; by ``vector`` (W, 1, D).

    By ``long_clips: views`` a clip is one window in four views, (W, V, F, M), the last three of them NaN where it is no
    longer than that (``dali_pipes/views.py``).

    Tokens of a window are ordered as the released encoder orders them: index = 32 f + t with f in {0, 1}
    the half of the folded frequency axis and t in 0..31 the time step of 312.5 ms (64 tokens of a 10 s
    window).

    While no parameter is trainable the module stays in evaluation mode, whatever ``train()`` says: no
    drop-path, and the running statistics of the mel norm stand still.

    Released weights hold parts that the features do not depend on (``UNUSED``). They are carried through
    conversions; each of their parameters has a true attribute ``unused`` and must not train, not even by
    weight decay.
    """

    UNUSED = (
        "patch_embed.mel_conv2d",
        "patch_embed.fusion_model",
        "tscam_conv",
        "head",
        "spectrogram_extractor",
        "logmel_extractor",
    )

    def __init__(self, front_end: FrontEndConfig, config: EncoderConfig) -> None:
        super().__init__()
        width = HTSATEncoder(config).width
        self.recompute, self.views = config.recompute, front_end.long_clips == "views"
        self.folds = IMAGE_SIDE // front_end.mel_bins
        self.bn0 = MelNorm(front_end.mel_bins)
        self.spec_augment = SpecAugment.of(front_end, on=config.spec_augment)
        self.patch_embed = PatchEmbedding(config)
        rows = IMAGE_SIDE // config.patch_size
        self.absolute_pos_embed: Tensor | None = None
        if config.absolute_positions:
            self.absolute_pos_embed = nn.Parameter(_time_and_frequency(rows, self.folds, config.embed_dim))
        rates = torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist()
        layers = []
        for i, (depth, heads) in enumerate(zip(config.depths, config.heads, strict=True)):
            dim, rows = config.embed_dim * 2**i, IMAGE_SIDE // config.patch_size // 2**i
            first = sum(config.depths[:i])
            blocks = [
                SwinBlock(dim, heads, rows, shifted=j % 2 == 1, drop_path=rates[first + j], config=config)
                for j in range(depth)
            ]
            layers.append(SwinLayer(blocks, PatchMerging(dim) if i + 1 < len(config.depths) else None))
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(width)
        self.projection = projection(config.vector, width, config.vector_dim) if config.vector else None
        if config.classes:
            halves = rows // self.folds
            self.tscam_conv = nn.Conv2d(width, config.classes, (halves, 3), padding=(0, 1))
            self.head = nn.Linear(config.classes, config.classes)
        if config.stft_weights:
            frequencies = front_end.fft_size // 2 + 1
            stft = {f"conv_{part}": _Carried(frequencies, 1, front_end.fft_size) for part in ("real", "imag")}
            self.spectrogram_extractor = nn.ModuleDict({"stft": nn.ModuleDict(stft)})
            self.logmel_extractor = _Carried(frequencies, front_end.mel_bins, name="melW")
        self.apply(_init_linear)
        for name, parameter in self.named_parameters():
            unused = name.startswith(self.UNUSED) and not (self.views and name.startswith("patch_embed."))
            setattr(parameter, "unused", unused)  # noqa: B010 (torch's type has no such attribute)
            parameter.requires_grad_(not unused)

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def forward(self, mel_WFM: Tensor) -> Tensor:
        self.train(self.training)  # parts may have been frozen since the last call
        x_WRRD = self._patches_of_views(mel_WFM) if self.views else self.patch_embed(self._image(mel_WFM))
        if self.absolute_pos_embed is not None:
            x_WRRD = x_WRRD + self.absolute_pos_embed
        for layer in self.layers:
            x_WRRD = layer(x_WRRD, self._run)
        W, R, _, D = x_WRRD.shape
        # Rows of the grid are (fold of time, frequency half): time must become contiguous for each half.
        x_WRRD = x_WRRD.view(W, self.folds, R // self.folds, R, D).transpose(1, 2).reshape(W, R * R, D)
        features: Tensor = self.norm(x_WRRD)
        if self.projection is not None:
            features = self.projection(features.mean(1, keepdim=True))
        return features

    def _patches_of_views(self, mel_WVFM: Tensor) -> Tensor:
        W, V = mel_WVFM.shape[:2]
        alone_WVFM = mel_WVFM.isnan()
        image = self._image(torch.where(alone_WVFM, mel_WVFM[:, :1], mel_WVFM).flatten(0, 1))
        image = image.view(W, V, *image.shape[1:])
        patches: Tensor = self.patch_embed(image[:, 0], image[:, 1:], ~alone_WVFM[:, 1, 0, 0])
        return patches

    def _image(self, mel_WFM: Tensor) -> Tensor:
        return self.fold(self.spec_augment(self.bn0(mel_WFM))).to(self.norm.weight.dtype)

    def fold(self, mel_WFM: Tensor) -> Tensor:
        """Stretch the frames to 256 x folds and lay the quarters below each other: (W, 1, 256, 256)."""
        W, _, M = mel_WFM.shape
        stretched = F.interpolate(
            mel_WFM.transpose(1, 2)[:, None], (M, IMAGE_SIDE * self.folds), mode="bicubic", align_corners=True
        )
        folded = stretched.view(W, M, self.folds, IMAGE_SIDE).transpose(1, 2)
        return folded.reshape(W, 1, IMAGE_SIDE, IMAGE_SIDE)

    def _run(self, block: nn.Module, x_WRRD: Tensor) -> Tensor:
        if self.recompute and self.training:
            out: Tensor = recomputed(block, x_WRRD)
        else:
            out = block(x_WRRD)
        return out


def _time_and_frequency(rows: int, folds: int, dim: int) -> Tensor:
    """First position embedding, (1, R, R, D): sines and cosines, half for the time and half for the frequency that a
    patch of the folded image stands for (as He et al. 2022 for rows and columns). Learnt from noise, as Swin does, a
    small encoder's tokens hardly know where in the window they are, and nothing behind it tells the decoder.
    """
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(rows), indexing="ij")
    halves = []
    for position, positions in ((row // (rows // folds) * rows + column, folds * rows), (row % (rows // folds), 8)):
        rates = torch.logspace(0, -1, -(-dim // 4), base=positions)
        angle_RRD = position[:, :, None] * rates
        halves.append(torch.cat([angle_RRD.sin(), angle_RRD.cos()], dim=-1)[..., : dim // 2])
    return F.pad(torch.cat(halves, dim=-1), (0, dim % 2))[None]


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
