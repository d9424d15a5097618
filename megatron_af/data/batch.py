"""What one data-parallel rank needs for one optimizer step: text rows, clips, and who encodes which clip.

    batch = stream.batch(step)                      # megatron_af.data.stream.Stream
    for rows in batch.rows: loss = model(rows, ...) # micro-batches

S text positions, B rows of a micro-batch, L audio tokens, D feature dim, W windows, F mel frames, M mel bins.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that is not supervised."""


@dataclass(frozen=True, kw_only=True)
class TextRows:
    """One micro-batch of text; a row may hold several segments (packed samples, questions of one sample)."""

    ids_BS: Tensor
    """int64, right padded."""
    labels_BS: Tensor
    """int64; the label at s is the token at s + 1 (already shifted), ``IGNORED`` where not supervised."""
    segment_BS: Tensor
    """int32; which segment of the row a position belongs to, -1 at padding."""
    first_audio_BS: Tensor
    """int32; first visible audio of the position, in the row's own order (index into ``clips[b]``)."""
    last_audio_BS: Tensor
    """int32; last visible audio; smaller than ``first_audio_BS`` where none is visible."""
    dataset_BS: Tensor
    """int32; index of the position's data set in ``sorted(stage.blend)``."""
    clips: tuple[tuple[int, ...], ...]
    """Per row: indices into ``StepBatch.clip_windows``, in the row's audio order."""


@dataclass(frozen=True, kw_only=True)
class AudioKeys:
    """What the decoder's cross-attention attends to, made by encode-ahead for one micro-batch."""

    tokens_LBD: Tensor
    """Right padded along L; the gradient flows into it."""
    audio_of_BL: Tensor
    """int32; index of the row's audio that a key belongs to, -1 at padding."""


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Text side of one clip, or of a part of it, in a contrastive stage (AF-CLAP): M positives, hard negatives."""

    clip: int
    """Index into ``StepBatch.clip_windows``."""
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    start: float = 0.0
    """Seconds from the beginning of the clip: the part of it that the texts describe."""
    end: float = math.inf
    dataset: int = 0
    """Index in ``sorted(stage.blend)``."""


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """One optimizer step of one data-parallel rank.

    Every rank of the model-parallel group holds the same text; the audio of a clip is only on its owner.
    A clip yields ``windows * encoder.tokens_per_window`` audio tokens: its last, partial window counts whole,
    as the reference masks by window.
    """

    rows: tuple[TextRows, ...]
    """Micro-batches, all padded to the same S (a multiple of 8 and of the tensor-parallel size)."""
    captions: tuple[Captions, ...] = ()
    """Samples of a contrastive stage; such a stage has no ``rows``."""
    clip_windows: tuple[int, ...]
    """Windows of every distinct clip of this step; a clip that several samples use appears once."""
    owners: tuple[tuple[int, ...], ...]
    """Per model-parallel rank: the clips it encodes, in ascending order."""
    mel_WFM: Tensor | None
    """dB mel windows of the clips this rank must encode, in ``owners`` order; None: nothing to do."""
    features_WLD: Tensor | None = None
    """Encoder outputs of this rank's clips that the feature cache served, in ``owners`` order."""
    cached: tuple[bool, ...] = ()
    """Per clip this rank owns: its features come from the cache (``features_WLD``), not from ``mel_WFM``.
    Empty when there is no cache."""
    clip_keys: tuple[str, ...] = ()
    """Per clip this rank owns: content key under which the feature cache knows it. Empty without a cache."""
    sample_ids: tuple[str, ...]
    audio_seconds: float
    """Seconds of sound in the distinct clips of this step (after cutting to ``stage.max_windows``)."""
    num_text_tokens: int
    """Positions that are not padding."""


def assign_clips(clip_windows: Sequence[int], ranks: int) -> tuple[tuple[int, ...], ...]:
    """Shares clips among the ranks of a model-parallel group, balanced by windows.

    Longest first to the least loaded rank (Graham's LPT rule: at most 4/3 of the optimum); ties go to the
    lower index, so every rank computes the same assignment.
    """
    load = [0] * ranks
    owned: list[list[int]] = [[] for _ in range(ranks)]
    for clip in sorted(range(len(clip_windows)), key=lambda c: -clip_windows[c]):
        rank = min(range(ranks), key=load.__getitem__)
        load[rank] += clip_windows[clip]
        owned[rank].append(clip)
    return tuple(tuple(sorted(clips)) for clips in owned)


def owned_windows(windows: Sequence[int], cached: Sequence[bool]) -> Tensor:
    """Marks which of a rank's windows the feature cache served: bool [sum(windows)], in clip order."""
    counts = torch.tensor(list(windows), dtype=torch.int64)
    return torch.repeat_interleave(torch.tensor(list(cached), dtype=torch.bool), counts)
