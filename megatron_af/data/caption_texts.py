"""The text side of a contrastive stage: what is said of each clip, and of its spans.

    texts = CaptionTexts(one_positive=False, heard_seconds=30.0)
    row, said = texts.of(row, draw)             # Captions of the row, refused where it contradicts itself
    batch = texts.collate(samples, heard, ...)  # CaptionBatch

Nothing is drawn per rank: which caption stands alone follows from the sample's place in the stream, so any layout and
a resume see the same one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from megatron_af.data.rows import Row, RowError
from megatron_af.data.sample_source import Sample, Shown
from megatron_af.data.sampler import Draw, keyed_hash


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Text side of one clip, or of a part of it (AF-CLAP): M positives, hard negatives."""

    clip: int = 0
    """Index into ``StepAudio.clip_windows``."""
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    start: float = 0.0
    """Seconds from the beginning of the clip: the part of it that the texts describe."""
    end: float = math.inf
    dataset: int = 0
    """Index in ``sorted(stage.blend)``."""


@dataclass(frozen=True, kw_only=True)
class CaptionBatch:
    """What is said of a step's clips."""

    captions: tuple[Captions, ...]
    num_tokens: int = 0
    """Captions are counted nowhere: a text tower is small beside ten seconds of audio."""


class CaptionTexts:
    """
    Args:
        one_positive: keep one caption of each clip or span, another one each time it is drawn.
        heard_seconds: of a clip from its beginning; what is said of parts behind them is not said of what is heard.
    """

    def __init__(self, *, one_positive: bool = False, heard_seconds: float = math.inf) -> None:
        self._one_positive, self._heard_seconds = one_positive, heard_seconds

    def of(self, row: Row, draw: Draw) -> tuple[Row, tuple[Captions, ...]]:
        """
        Raises:
            RowError: no caption, none of what is heard, not one clip, or a caption that is also a negative.
        """
        if not (row.captions or row.spans) or len(row.clips) != 1:
            raise RowError(f"row {row.id}: a contrastive stage needs one clip and at least one caption")
        if not (said := list(self._said(row))):
            heard = min(row.clips[0].duration, self._heard_seconds)
            raise RowError(f"row {row.id}: all its spans begin behind the {heard:g} s that the stage hears of its clip")
        for captions in said:
            both = {c.lower().strip() for c in captions.positives} & {n.lower().strip() for n in captions.negatives}
            if both:
                raise RowError(f"row {row.id}: {min(both)!r} is a caption and a negative at once; remove one")
        if self._one_positive:
            said = [
                replace(c, positives=(c.positives[keyed_hash(draw.random, place) % len(c.positives)],))
                for place, c in enumerate(said)
            ]
        return row, tuple(said)

    def collate(
        self, samples: Sequence[Sample[tuple[Captions, ...]]], heard: Sequence[tuple[int, ...]], windows: Sequence[int]
    ) -> CaptionBatch:
        """The step's captions, with the clip that each is said of."""
        return CaptionBatch(
            captions=tuple(
                replace(captions, clip=clips[0], dataset=sample.dataset)
                for sample, clips in zip(samples, heard, strict=True)
                for captions in sample.text
            )
        )

    def shown(self, row: Row) -> list[Shown]:
        """A line for each caption, and for each hard negative of it."""
        lines: list[Shown] = []
        for part in self._said(row):
            span = "" if part.end == math.inf else f"{part.start:g}-{part.end:g} s: "
            lines += [((span, False, True), (text, True, False)) for text in part.positives]
            lines += [((f"{span}not: ", False, True), (text, False, False)) for text in part.negatives]
        return lines

    def _said(self, row: Row) -> Iterator[Captions]:
        """What is said of the whole clip, and of those of its spans that begin in what is heard of it."""
        if row.captions:
            yield Captions(positives=row.captions, negatives=row.negatives)
        heard = min([self._heard_seconds, *(clip.duration for clip in row.clips)])
        for span in row.spans:
            if span.start < heard:
                yield Captions(positives=span.captions, negatives=span.negatives, start=span.start, end=span.end)
