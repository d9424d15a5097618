"""What one data-parallel rank needs for one optimizer step: clips, who encodes which, and what is said of them.

    batch = stream.batch(step)                              # megatron_af.data.stream.Stream
    for rows in batch.text.rows: loss = model(rows, ...)    # micro-batches of the answer objective

The audio is the same for every objective; ``text`` is what the stage's own objective makes of the samples
(``TextBatch`` here, ``CaptionBatch`` in ``caption_texts.py``, or another one's).

S text positions, B rows of a micro-batch, L audio tokens, D feature dim, W windows, F mel frames, M mel bins.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""Label of a position that is not supervised."""


@dataclass(frozen=True, kw_only=True)
class TextRows:
    """One micro-batch of text; a row may hold several segments (packed samples, questions of one sample)."""

    ids_BS: "Tensor"
    """int64, right padded."""
    labels_BS: "Tensor"
    """int64; the label at s is the token at s + 1 (already shifted), ``IGNORED`` where not supervised."""
    segment_BS: "Tensor"
    """int32; which segment of the row a position belongs to, -1 at padding."""
    first_audio_BS: "Tensor"
    """int32; first visible audio of the position, in the row's own order (index into ``clips[b]``)."""
    last_audio_BS: "Tensor"
    """int32; last visible audio; smaller than ``first_audio_BS`` where none is visible."""
    dataset_BS: "Tensor"
    """int32; index of the position's data set in ``sorted(stage.blend)``."""
    clips: tuple[tuple[int, ...], ...]
    """Per row: indices into ``StepAudio.clip_windows``, in the row's audio order."""

    @cached_property
    def supervised(self) -> "tuple[Tensor, Tensor]":
        """Supervised positions in row-major order, as indices into [S * B] hidden states, and their labels."""
        batch, length = self.labels_BS.shape
        index_T = (self.labels_BS != IGNORED).flatten().nonzero().squeeze(1)
        return (index_T % length) * batch + index_T // length, self.labels_BS.flatten()[index_T]


@dataclass(frozen=True, kw_only=True)
class AudioKeys:
    """What the decoder's cross-attention attends to, made by encode-ahead for one micro-batch."""

    tokens_LBD: "Tensor"
    """Right padded along L; the gradient flows into it."""
    audio_of_BL: "Tensor"
    """int32; index of the row's audio that a key belongs to, -1 at padding."""


@dataclass(frozen=True, kw_only=True)
class TextBatch:
    """The text of a step of the answer objective."""

    rows: tuple[TextRows, ...]
    """Micro-batches, all padded to the same S (a multiple of 8 and of the tensor-parallel size)."""
    num_tokens: int
    """Positions that are not padding."""
    too_long: Mapping[int, int] = field(default_factory=dict)
    """Data set (its place in ``sorted(stage.blend)``) -> questions drawn for this batch that fit into no text row."""


@dataclass(frozen=True, kw_only=True)
class HeardClip:
    """What a clip's features follow from, besides the encoder."""

    digest: Callable[[], str]
    """Of the recording's bytes; asked only by who needs it, for a file that is not prepared is read for it."""
    start: float
    duration: float
    """Seconds of the recording, as the manifest promises them."""
    windows: int


class Known(Protocol):
    """What the encoder's side already has of a rank's clips; the stream only asks it which ones to make mel of."""

    @property
    def missing(self) -> Sequence[int]:
        """Places, in the order in which the clips were asked for, whose mel is wanted."""

    def without(self, spoiled: Sequence[int]) -> "Known":
        """The same, told that the audio at these places could not be decoded: their features are not kept."""


class EncoderSide(Protocol):
    """Who encodes: ``megatron_af.audio.features.ClipFeatures``."""

    def look_up(self, clips: Sequence[HeardClip]) -> Known: ...


@dataclass(frozen=True, kw_only=True)
class StepAudio:
    """The clips of one data-parallel rank's step; the audio of a clip is only on its owner.

    A clip yields ``windows * encoder.tokens_per_window`` audio tokens: its last, partial window counts whole,
    as the reference masks by window.
    """

    clip_windows: tuple[int, ...]
    """Windows of every distinct clip of this step; a clip that several samples use appears once."""
    owners: tuple[tuple[int, ...], ...]
    """Per rank of the model-parallel group: the clips it encodes, in ascending order."""
    mel_WFM: "Tensor | None"
    """dB mel windows of the clips this rank must encode, in ``owners`` order; None: nothing to do."""
    known: Known | None = None
    """What the encoder's side answered about this rank's clips; None: it was not asked, all of them are in the mel."""
    seconds: float
    """Seconds of sound in the distinct clips of this step (after cutting to ``stage.max_windows``)."""


class StepText(Protocol):
    """What an objective makes of the samples of a step."""

    @property
    def num_tokens(self) -> int:
        """Text positions that are not padding; 0 where the objective's work is not counted in them."""


@dataclass(frozen=True, kw_only=True)
class StepBatch[Text: StepText]:
    """One optimizer step of one data-parallel rank. Every rank of the model-parallel group holds the same text."""

    audio: StepAudio
    text: Text
    sample_ids: tuple[str, ...]


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
