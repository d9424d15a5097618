"""Sizes of the model: front end, encoder, transformation layers, language model, gated blocks, CLAP."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_af.config.components import UnknownComponent, component
from megatron_af.config.effects import Rounding, Weights
from megatron_af.config.errors import divides
from megatron_af.config.ranges import BelowOne, Count, NotNegative, Positive, Whole

FAMILIES = {"opt": "megatron_af.decoder.opt:OPT", "qwen2": "megatron_af.decoder.qwen2:Qwen2"}
VIEWS = 4
"""Of a clip by ``long_clips: views``: the whole of it, and a window out of each third."""
ENCODERS = {"htsat": "megatron_af.audio.htsat_encoder:HTSATEncoder"}


@dataclass(frozen=True, kw_only=True)
class FrontEndConfig:
    """From waveform to log-mel windows (defaults: AF-CLAP; ``facts``: AF2 src/factory.py)."""

    sample_rate: Weights[Count] = 16_000
    """Hz of the audio the model hears; other rates are resampled before the windows are cut."""
    window_seconds: Weights[Positive] = 10.0
    overlap_seconds: Weights[NotNegative] = 0.0
    """Overlap of consecutive windows; AF2 0, AF1 5.25 of 7 s."""
    short_clips: Weights[Literal["pad", "repeat", "repeat_whole"]] = "pad"
    """What fills the window of a clip that is shorter: zeros (Audio Flamingo 1 and 2), the clip again and again (the
    wrappers of Microsoft's CLAP and ClapCap), or the clip as often as it goes in whole, then zeros (LAION-CLAP)."""
    long_clips: Weights[Literal["windows", "views"]] = "windows"
    """What a longer clip becomes: windows, or four views of a window's size that the encoder makes one vector of, the
    whole clip shrunk and a window out of each third (LAION-CLAP's fused encoder). No stage trains through views; they
    are what ``retrieval.encoder`` hears."""
    level: Weights[Literal["peak", "recorded"]] = "peak"
    """``peak``: each clip is scaled to its loudest sample, as the reference does; ``recorded``: as it is, so that what
    comes later changes nothing."""
    fft_size: Weights[Count] = 1024
    hop_samples: Weights[Count] = 160
    mel_bins: Weights[Count] = 64
    min_hz: Weights[NotNegative] = 50.0
    max_hz: Weights[Positive] = 8_000.0
    mel_scale: Weights[Literal["htk", "slaney"]] = "htk"
    """``htk`` without area normalisation (AF-CLAP), or ``slaney`` with it (LAION-CLAP, ClapCap)."""
    mel_sample_rate: Weights[Whole] = 0
    """Hz of the audio that the mel filters are drawn for; 0: ``sample_rate``. ClapCap draws them for 32 kHz and hears
    44.1 (msclap/models/config.py), so all its bands lie higher than ``min_hz`` and ``max_hz`` say."""

    @property
    def window_samples(self) -> int:
        return round(self.window_seconds * self.sample_rate)

    @property
    def stride_samples(self) -> int:
        return round((self.window_seconds - self.overlap_seconds) * self.sample_rate)

    @property
    def window_frames(self) -> int:
        """Mel frames of one window (1001 for AF-CLAP: centred frames on both ends)."""
        return self.window_samples // self.hop_samples + 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of what the encoder takes at a time: (frames, bins), or that of each view."""
        window = (self.window_frames, self.mel_bins)
        return (VIEWS, *window) if self.long_clips == "views" else window

    def num_windows(self, num_samples: int, max_windows: int) -> int:
        """What the encoder takes of ``num_samples``: a clip in views is taken at once."""
        return 1 if self.long_clips == "views" else self.covering(num_samples, max_windows)

    def windows_of(self, seconds: float, max_windows: int) -> int:
        """The same of a clip of so many seconds, as its row promises them."""
        return self.num_windows(round(seconds * self.sample_rate), max_windows)

    def covering(self, num_samples: int, max_windows: int) -> int:
        """Windows that cover ``num_samples``, at least 1 and at most ``max_windows``."""
        beyond_first = max(0, num_samples - self.window_samples)
        return min(max_windows, 1 + -(-beyond_first // self.stride_samples))

    def heard_seconds(self, max_windows: int) -> float:
        """Seconds that so many windows cover; what lies behind them is not heard."""
        return self.window_seconds + (max_windows - 1) * (self.window_seconds - self.overlap_seconds)

    def problems(self, key: str) -> Iterator[str]:
        """What does not go together in it, with its fix; ``key``: where it stands, ``model.front_end``."""
        if self.overlap_seconds >= self.window_seconds:
            yield (
                f"{key}.overlap_seconds = {self.overlap_seconds}: must be below window_seconds = {self.window_seconds}"
            )
        elif self.stride_samples < 1:
            yield (
                f"{key}.window_seconds = {self.window_seconds} less overlap_seconds = {self.overlap_seconds}"
                f" is no whole sample at sample_rate = {self.sample_rate}: lengthen the window"
            )
        which = "mel_sample_rate" if self.mel_sample_rate else "sample_rate"
        mel_rate = self.mel_sample_rate or self.sample_rate
        if not self.min_hz < self.max_hz <= mel_rate / 2:
            yield (
                f"{key}.min_hz = {self.min_hz}, max_hz = {self.max_hz}: need min_hz < max_hz <= "
                f"{mel_rate / 2} (half of {which}), with {key}.{which} = {mel_rate}"
            )


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """HTS-AT, whose defaults are the released AF-CLAP encoder ("large", 278,770,007 parameters), or another one."""

    kind: Weights[str] = "htsat"
    """A built-in encoder, or ``module:Class`` of your own (``megatron_af/audio/encoder.py``)."""
    settings: Weights[dict[str, Any]] = field(default_factory=dict)
    """Of an encoder that is not built in; the keys below are HTS-AT's."""
    embed_dim: Weights[Count] = 256
    depths: Weights[tuple[Count, ...]] = (2, 2, 12, 2)
    heads: Weights[tuple[Count, ...]] = (4, 8, 16, 32)
    patch_size: Weights[Count] = 4
    window_size: Weights[Count] = 8
    """Side of the attention window, in patches."""
    mlp_ratio: Weights[Count] = 4
    absolute_positions: Weights[bool] = False
    """Add a learnt vector to every patch (HTS-AT's and Swin's ``ape``, off in AF-CLAP): without it no feature knows
    where in its window it stands, which small models hardly learn from relative positions."""
    drop_path: Weights[BelowOne] = 0.1
    fusion: Weights[bool] = True
    """Carry AF-CLAP's feature-fusion weights; a window of at most 10 s never goes through them."""
    classes: Weights[Whole] = 527
    """Outputs of the token-semantic head, part of the released weights and unused here; 0 leaves it out."""
    stft_weights: Weights[bool] = True
    """Carry the STFT and mel matrices that the released weights count among their parameters; DALI makes the mel."""
    spec_augment: Weights[bool] = False
    """While training, blank two stripes of up to 6.4% of the time (HTS-AT: 64 frames of 10 s) and two of up to 8 mel
    bins in every window; a stage may set its own (``curriculum.NAME.augment``)."""
    recompute: Rounding[bool] = False
    """Recompute the encoder's activations in the backward pass (bounds memory in stage 2)."""
    vector: Weights[Literal["", "mlp", "residual"]] = ""
    """One vector per window, the projected mean of its tokens: through two layers (``mlp``, LAION-CLAP) or with a
    residual and a norm (``residual``, ClapCap). Empty: the tokens themselves (AF-CLAP)."""
    vector_dim: Weights[Count] = 512
    """Width of that vector; 1024 in ClapCap."""

    @property
    def component(self) -> Any:
        """The ``megatron_af.audio.encoder.AudioEncoder`` of these settings; its module is imported only now.

        Raises:
            UnknownComponent: ``kind`` names none.
        """
        return component(self.kind, ENCODERS, "megatron_af.audio.encoder:AudioEncoder")(self)

    @property
    def feature_dim(self) -> int:
        """Of what the encoder hands on: tokens, or vectors."""
        dim: int = self.component.feature_dim
        return dim

    @property
    def tokens_per_window(self) -> int:
        tokens: int = self.component.tokens_per_window
        return tokens


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Audio transformation layers between encoder and decoder (AF2 src/helpers.py; AF1 by ``positions``)."""

    layers: Weights[Whole] = 3
    heads: Weights[Count] = 8
    ffn: Weights[Count] = 2048
    positions: Weights[Literal["rope", "sinusoidal"]] = "rope"
    """``rope`` (AF2) or ``sinusoidal`` (AF1)."""
    rope_base: Weights[Positive] = 4096.0
    sees: Weights[Literal["clip", "past", "row"]] = "clip"
    """What a clip's tokens see. ``clip``: the clip. ``past``: its window and those before, so that a recording can be
    heard while it goes on (``megatron_af/inference/live.py``). ``row``, for answers of the released Audio Flamingo 1:
    all audios of the row and their padding, so that later audios reach what stands before them; nothing trains so."""
    row_windows: Weights[Count] = 16
    """Windows that every audio takes where ``sees`` is ``row``: the ``max_windows`` of its training."""


@dataclass(frozen=True, kw_only=True)
class LMConfig:
    """The language model. Defaults are Qwen2.5-3B."""

    family: Weights[str] = "qwen2"
    """A built-in family, or ``module:Class`` of your own (``megatron_af/decoder/family.py``)."""
    hidden: Weights[Count] = 2048
    layers: Weights[Count] = 36
    heads: Weights[Count] = 16
    kv_heads: Weights[Count] = 2
    ffn: Weights[Count] = 11_008
    vocab: Weights[Count] = 151_936
    """Rows of the embedding table, before added tokens and padding."""
    tied: Weights[bool] = True
    """Output layer shares the embedding table."""
    rope_base: Weights[Positive] = 1e6
    """Of rotary positions, where the family has them."""
    norm_eps: Weights[Positive] = 1e-6
    max_positions: Weights[Count] = 32_768
    """Most tokens of a text; with learnt positions also the places that their table has."""

    def too_few_rows(self, words: int) -> str:
        """What to say where ``words`` ids, a tokenizer's own without Audio Flamingo's added ones, do not all have a row
        of the table; empty where they do."""
        if words <= self.vocab:
            return ""
        return f"model.lm.vocab = {self.vocab:,}: data.tokenizer has {words:,} words, a row each; set it to {words:,}"

    @property
    def component(self) -> Any:
        """The ``megatron_af.decoder.family.LanguageFamily`` of these sizes; its module is imported only now.

        Raises:
            UnknownComponent: ``family`` names none.
        """
        return component(self.family, FAMILIES, "megatron_af.decoder.family:LanguageFamily")(self)

    def problems(self, key: str) -> Iterator[str]:
        """What does not go together in it, with its fix; ``key``: where it stands, ``model.lm``."""
        yield from divides(f"{key}.heads", self.heads, f"{key}.hidden", self.hidden)
        yield from divides(f"{key}.kv_heads", self.kv_heads, f"{key}.heads", self.heads)
        try:
            yield from self.component.problems()
        except UnknownComponent as error:
            yield f"{key}.family = {error}"


@dataclass(frozen=True, kw_only=True)
class CrossAttentionConfig:
    """Gated cross-attention blocks in front of every ``interval``-th LM layer."""

    interval: Weights[int] = 1
    """A block stands before LM layer i (from 0) where (i + 1) % interval == 0."""
    heads: Weights[Count] = 8
    head_dim: Weights[Count] = 64
    ffn_multiplier: Weights[Count] = 4
    immediate: Weights[bool] = False
    """Text sees only the latest audio before it (Flamingo) instead of all audio so far (Audio Flamingo)."""


LOWEST_TEMPERATURE = 0.01
"""A learnt temperature stops here, where CLIP's does (Radford et al. 2021, section 2.5)."""


@dataclass(frozen=True, kw_only=True)
class ClapConfig:
    """What contrastive pre-training adds to the encoder: text tower and joint space. Defaults are AF-CLAP's."""

    text_tower: Weights[str] = "google/flan-t5-large"
    """Folder or hub name of any Hugging Face text encoder, with its tokenizer; empty: a fresh BERT of the sizes
    below, over ``data.tokenizer``."""
    text_hidden: Weights[Count] = 256
    text_layers: Weights[Count] = 4
    text_heads: Weights[Count] = 4
    text_max_tokens: Weights[Count] = 77
    """Tokens of a caption; longer ones are cut."""
    text_recompute: Rounding[bool] = False
    """Recompute the text tower's activations in the backward pass, layer by layer."""
    text_micro_batch: Rounding[Whole] = 0
    """Captions that go through the text tower at a time, and again in the backward pass: its memory no longer grows
    with positives and hard negatives. 0: all at once."""
    joint_dim: Weights[Count] = 512
    temperature: Weights[Positive] = 0.07
    learn_temperature: Weights[bool] = False
    """Start from ``temperature`` and learn it, never below 0.01 (as CLIP does)."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    transform: TransformConfig = field(default_factory=TransformConfig)
    lm: LMConfig = field(default_factory=LMConfig)
    cross_attention: CrossAttentionConfig = field(default_factory=CrossAttentionConfig)
    clap: ClapConfig = field(default_factory=ClapConfig)
