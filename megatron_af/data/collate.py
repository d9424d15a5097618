"""From token segments to one padded micro-batch of text.

    rows = collate([PackedRow(segments=(segment,), clips=(0,))], tokenizer, length=64)

B rows, S positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from megatron_af.data.batch import TextRows
from megatron_af.data.templates import answer_labels

if TYPE_CHECKING:
    from megatron_af.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Tokens that attend to each other only, and to the audios of their own sample only."""

    ids: Sequence[int]
    first_audio: int = 0
    """Where the sample's audios begin in the row."""
    num_audios: int = 0
    dataset: int = 0


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """One row of text: segments side by side, and the clips that they see."""

    segments: tuple[Segment, ...]
    clips: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(segment.ids) for segment in self.segments)


def collate(rows: Sequence[PackedRow], tokenizer: Tokenizer, length: int, *, immediate: bool = False) -> TextRows:
    """Pads rows to ``length`` and derives labels and audio visibility from the special tokens.

    A token sees its sample's audios up to the latest ``<audio>`` at or before it, at least the first one, as
    in Audio Flamingo 1 (src/helpers.py); with ``immediate`` only that latest one, as in Flamingo.
    """
    shape = (len(rows), length)
    ids, datasets = np.full(shape, tokenizer.pad_id, np.int64), np.zeros(shape, np.int32)
    segments = np.full(shape, -1, np.int32)
    first, audios, began = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    heard = np.zeros((len(rows), length + 1), np.int32)  # <audio> tokens before each position
    for b, row in enumerate(rows):
        begin = 0
        for number, segment in enumerate(row.segments):
            span = slice(begin, begin + len(segment.ids))
            ids[b, span] = segment.ids
            segments[b, span], datasets[b, span] = number, segment.dataset
            first[b, span], audios[b, span], began[b, span] = segment.first_audio, segment.num_audios, begin
            begin = span.stop
    np.cumsum(ids == tokenizer.audio_id, axis=1, out=heard[:, 1:])
    latest = heard[:, 1:] - np.take_along_axis(heard, began.astype(np.int64), axis=1) - 1
    last = first + np.minimum(np.maximum(latest, 0), audios - 1)  # no audio: one below the first
    if immediate:
        first = np.where(audios > 0, last, first)
    return TextRows(
        ids_BS=torch.from_numpy(ids),
        labels_BS=torch.from_numpy(answer_labels(ids, segments, tokenizer)),
        segment_BS=torch.from_numpy(segments),
        first_audio_BS=torch.from_numpy(first.astype(np.int32)),
        last_audio_BS=torch.from_numpy(last.astype(np.int32)),
        dataset_BS=torch.from_numpy(datasets),
        clips=tuple(row.clips for row in rows),
    )


def padded_length(longest: int, multiple: int) -> int:
    """Length of a step's rows: the longest, rounded up to a multiple of 8 and of ``multiple``."""
    unit = np.lcm(8, multiple).item()
    return max(unit, -(-longest // unit) * unit)
