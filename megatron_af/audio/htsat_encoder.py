"""HTS-AT as a component: its sizes, what keeps it from being built, what it costs; the network is in ``htsat.py``.

Source: Chen et al. 2022 (HTS-AT). ClapCap and LAION-CLAP are the same encoder with ``model.encoder.vector``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from megatron_af.audio.encoder import AudioEncoder
from megatron_af.config import EncoderConfig, FrontEndConfig
from megatron_af.config.errors import divides
from megatron_af.flops import Tally

if TYPE_CHECKING:
    from megatron_af.audio.htsat import HTSAT

IMAGE_SIDE = 256
"""The mel windows are folded to a square image of this many rows and columns (HTS-AT section 2.1)."""
MEL_BINS = 64
FOLDS = IMAGE_SIDE // MEL_BINS
MEL_FRAMES = IMAGE_SIDE * FOLDS
"""The image holds this many frames by bins."""


class HTSATEncoder(AudioEncoder):
    @property
    def width(self) -> int:
        """Of the tokens of the last grid; 0 without stages."""
        config = self.config
        return config.embed_dim * 2 ** (len(config.depths) - 1) if config.depths else 0

    @property
    def feature_dim(self) -> int:
        return self.config.vector_dim if self.config.vector and self.width else self.width

    @property
    def feature_key(self) -> str:  # type: ignore[override]
        return "model.encoder.vector_dim" if self.config.vector else _times(len(self.config.depths) - 1)

    @property
    def tokens_per_window(self) -> int:
        return 1 if self.config.vector else self._rows[-1] ** 2

    @property
    def time_steps(self) -> int:
        """The last grid's columns times the quarters that lie below each other; a vector stands for the window."""
        return 1 if self.config.vector else self._rows[-1] * FOLDS

    @property
    def _rows(self) -> list[int]:
        """Of the grid, by stage."""
        config = self.config
        return [IMAGE_SIDE // config.patch_size // 2**stage for stage in range(len(config.depths))] or [0]

    def build(self, front_end: FrontEndConfig, *, pretraining: bool = False) -> HTSAT:
        from megatron_af.audio.htsat import HTSAT

        network = HTSAT(front_end, self.config)
        network.bn0.learns_statistics = pretraining
        return network

    def problems(self, front_end: FrontEndConfig) -> Iterator[str]:
        encoder = self.config
        if not encoder.depths:
            yield "model.encoder.depths is empty: give each stage of the encoder its number of blocks"
        elif len(encoder.depths) != len(encoder.heads):
            yield (
                f"model.encoder.heads has {len(encoder.heads)} stages and model.encoder.depths has "
                f"{len(encoder.depths)}: give both the same length"
            )
        for stage, heads in enumerate(encoder.heads):
            dim = encoder.embed_dim * 2**stage
            yield from divides(
                f"model.encoder.heads[{stage}]", heads, f"the width of encoder stage {stage}, {_times(stage)}", dim
            )
        if encoder.fusion and encoder.embed_dim < 4:
            yield (
                f"model.encoder.embed_dim = {encoder.embed_dim}: feature fusion needs 4; raise it or set fusion to "
                "false"
            )
        if front_end.long_clips == "views" and not encoder.fusion:
            yield (
                "model.front_end.long_clips = views: views are joined by the fusion weights, and model.encoder.fusion "
                "is false; set it to true, or long_clips to windows"
            )
        if IMAGE_SIDE % encoder.patch_size:
            yield from divides("model.encoder.patch_size", encoder.patch_size, "the side of HTS-AT's image", IMAGE_SIDE)
        elif encoder.depths:
            yield from self._grid()
        if front_end.mel_bins != MEL_BINS:
            yield (
                f"model.front_end.mel_bins = {front_end.mel_bins}: HTS-AT's image holds {MEL_BINS}; "
                f"set it to {MEL_BINS}"
            )
        if front_end.window_frames > MEL_FRAMES:
            yield (
                f"model.front_end.window_seconds = {front_end.window_seconds} makes {front_end.window_frames} mel "
                f"frames; HTS-AT takes {MEL_FRAMES}: shorten the window or raise model.front_end.hop_samples = "
                f"{front_end.hop_samples}"
            )

    def _grid(self) -> Iterator[str]:
        encoder, rows = self.config, self._rows
        if rows[-1] < FOLDS:
            yield (
                f"model.encoder.patch_size = {encoder.patch_size} with {len(rows)} stages leaves a grid of {rows[-1]} "
                f"rows for the {FOLDS} folds of a window: use smaller patches or fewer model.encoder.depths"
            )
        side = encoder.window_size
        if split := [stage for stage, number in enumerate(rows) if number > side and number % side]:
            yield (
                f"model.encoder.window_size = {side} does not divide the {rows[split[0]]} rows of encoder stage "
                f"{split[0]}: set it to a power of 2"
            )

    def tally(self, tally: Tally) -> bool:
        config = self.config
        dim, rows = config.embed_dim, IMAGE_SIDE // config.patch_size
        x = tally.passes(False, "encoder.bn0.weight", "encoder.bn0.bias")
        x = tally.linear(x, "encoder.patch_embed.proj", config.patch_size**2 * dim * rows**2, "windows", bias=True)
        x = tally.passes(x, *_norm("encoder.patch_embed.norm"))
        if config.absolute_positions:
            x = tally.passes(x, "encoder.absolute_pos_embed")
        for i, depth in enumerate(config.depths):
            for j in range(depth):
                x = _tally_block(tally, x, f"encoder.layers.{i}.blocks.{j}", dim, rows, config)
            if i + 1 < len(config.depths):
                at, dim, rows = f"encoder.layers.{i}.downsample", 2 * dim, rows // 2
                x = tally.passes(x, *_norm(f"{at}.norm"))
                x = tally.linear(x, f"{at}.reduction", 2 * dim**2 * rows**2, "windows")
        x = tally.passes(x, *_norm("encoder.norm"))
        return _tally_projection(tally, x, "encoder.projection", config.vector, dim, config.vector_dim)


def _tally_block(tally: Tally, x: bool, at: str, dim: int, rows: int, config: EncoderConfig) -> bool:
    patches, side = rows**2, min(config.window_size, rows)
    y = tally.passes(x, *_norm(f"{at}.norm1"))
    y = tally.linear(y, f"{at}.attn.qkv", 3 * dim**2 * patches, "windows", bias=True)
    bias = tally.trains(f"{at}.attn.relative_position_bias_table")
    y = tally.attention(y, y, y, dim * patches * side**2, "windows", bias=bias)
    x = tally.linear(y, f"{at}.attn.proj", dim**2 * patches, "windows", bias=True) or x
    y = tally.passes(x, *_norm(f"{at}.norm2"))
    for part in ("fc1", "fc2"):
        y = tally.linear(y, f"{at}.mlp.{part}", config.mlp_ratio * dim**2 * patches, "windows", bias=True)
    return x or y


def _norm(name: str) -> tuple[str, str]:
    return f"{name}.weight", f"{name}.bias"


def _times(stage: int) -> str:
    return f"model.encoder.embed_dim x {2**stage}"


def _tally_projection(
    tally: Tally, x: bool, at: str, kind: Literal["", "mlp", "residual"], width: int, joint_dim: int
) -> bool:
    """The products of a projection for a window; none where there is none."""
    if not kind:
        return x
    first, second = ("linear1", "linear2") if kind == "residual" else ("0", "2")
    bias = kind == "mlp"
    y = tally.linear(x, f"{at}.{first}", width * joint_dim, "windows", bias=bias)
    y = tally.linear(y, f"{at}.{second}", joint_dim**2, "windows", bias=bias)
    return tally.passes(y, f"{at}.layer_norm.weight", f"{at}.layer_norm.bias") if kind == "residual" else y
