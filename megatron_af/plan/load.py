"""What one rank has of a step: shapes of its micro-batches, and windows that it encodes.

    steps = list(draw_steps(Cut.of(config, stage), samples, per_rank=128, count=64))    # as training would make them
    mean(steps)

Batches are drawn from lengths and then made by training's own functions: packing, padding, sharing of clips.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Self

from megatron_af.config import Config, StageConfig
from megatron_af.data.batch import StepAudio, TextBatch, assign_clips
from megatron_af.data.collate import padded_length
from megatron_af.data.packing import pack
from megatron_af.decoder.placement import SUPERVISED
from megatron_af.model import length_groups
from megatron_af.train.flops import answer_amounts


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Lengths of one sample."""

    windows: tuple[int, ...]
    """Of each of its clips, cut to what the stage hears."""
    tokens: int
    """Of its text, all questions together."""
    segments: int = 1
    """Questions that stand side by side in its row."""
    supervised: float = SUPERVISED
    """Part of the tokens with a label."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """A step of one data-parallel rank; of what its model-parallel ranks share, the busiest one's part."""

    micro_batches: float
    rows: float
    """Text rows of a micro-batch."""
    length: float
    """Positions of a row, padding included."""
    keys: float
    """Audio tokens of a row, padding included: those of the micro-batch with the most."""
    mean_keys: float
    """The same, of the middle micro-batch."""
    supervised: float
    """Positions with a label, of the micro-batch with the most."""
    mean_supervised: float
    """The same, of the middle micro-batch."""
    text_scores: float
    """Pairs of positions that attention looks at together, of the middle micro-batch: of rows, or of their segments."""
    audio_scores: float
    """Pairs of a position and an audio token that it hears, of the middle micro-batch."""
    text_stretches: bool
    """Several segments stand in a row (``decoder/stretches.py``)."""
    audio_stretches: bool
    """A position may not hear everything, or keys are padded."""
    windows: float
    """Of the step's clips."""
    own_windows: float
    """That the busiest rank encodes."""
    clip_tokens: float
    """Tokens that enter its transformation layers, padding included."""
    clip_scores: float
    largest_call: float
    """Tokens of the largest of its calls."""
    tokens: float
    """Text positions of the step that are not padding."""
    encoded: float = 1.0
    """Part of the windows that no cache has."""


def load_of(audio: StepAudio, text: TextBatch, tokens_per_window: int) -> Load:
    """Of a batch that exists."""
    windows = audio.clip_windows
    rows = text.rows
    keys = [max((sum(windows[c] for c in clips) for clips in micro.clips), default=0) for micro in rows]
    counted = answer_amounts(tokens_per_window, audio, rows)
    return _load(
        windows=windows,
        owners=audio.owners,
        micro=[(len(r.ids_BS), k, len(r.supervised[0])) for r, k in zip(rows, keys, strict=True)],
        scores=(counted.text_scores, counted.audio_scores),
        length=rows[0].ids_BS.shape[1],
        text_stretches=any(bool((r.segment_BS > 0).any()) for r in rows),
        audio_stretches=any(len({sum(windows[c] for c in clips) for clips in r.clips}) > 1 for r in rows)
        or any(len(clips) > 1 for r in rows for clips in r.clips),
        tokens_per_window=tokens_per_window,
        tokens=text.num_tokens,
    )


@dataclass(frozen=True, kw_only=True)
class Cut:
    """All that the steps of given samples depend on: recomputation, overlap and what is sharded change none of them."""

    tensor: int
    pipeline: int
    interleaved: bool
    """The schedule takes micro-batches in groups of as many as there are pipeline stages."""
    micro_batch_samples: int
    pack_tokens: int
    tokens_per_window: int

    @classmethod
    def of(cls, config: Config, stage: StageConfig) -> Self:
        return cls(
            tensor=config.parallel.tensor,
            pipeline=config.parallel.pipeline,
            interleaved=config.parallel.virtual_pipeline > 1,
            micro_batch_samples=stage.micro_batch_samples,
            pack_tokens=stage.pack_tokens,
            tokens_per_window=config.model.encoder.tokens_per_window,
        )


def draw_steps(cut: Cut, samples: Sequence[Sample], *, per_rank: int, count: int, seed: int = 0) -> Iterator[Load]:
    """Steps of a data-parallel rank as the stage would make them of ``samples`` in any order.

    Args:
        per_rank: samples of a step on one data-parallel rank.
    """
    draw = random.Random(seed)
    for _ in range(count):
        yield made_of([draw.choice(samples) for _ in range(per_rank)], cut)


def made_of(chosen: Sequence[Sample], cut: Cut) -> Load:
    """The step of some samples."""
    windows = tuple(count for sample in chosen for count in sample.windows)
    rows = [[place] for place in range(len(chosen))]
    each, tokens_per_window = cut.micro_batch_samples, cut.tokens_per_window
    if cut.pack_tokens:
        sizes = [(sample.tokens, sum(sample.windows)) for sample in chosen]
        rows = pack(sizes, cut.pack_tokens, each * (cut.pipeline if cut.interleaved else 1))
    tokens = [sum(chosen[place].tokens for place in row) for row in rows]
    length = padded_length(max(tokens, default=0), cut.tensor)
    micro, text_scores, audio_scores = [], 0.0, 0.0
    for begin in range(0, len(rows), each):
        here = [[chosen[place] for place in row] for row in rows[begin : begin + each]]
        heard = [sum(sum(sample.windows) for sample in row) for row in here]
        supervised = round(sum(sample.supervised * sample.tokens for row in here for sample in row))
        micro.append((len(here), max(heard, default=0), supervised))
        alone = all(sum(sample.segments for sample in row) <= 1 for row in here)
        text_scores += len(here) * length**2 if alone else sum(_own_scores(sample) for row in here for sample in row)
        alike = all(len(row) == 1 for row in here) and len(set(heard)) == 1
        audio_scores += tokens_per_window * (
            len(here) * length * heard[0]
            if alike
            else sum(sample.tokens * sum(sample.windows) for row in here for sample in row)
        )
    return _load(
        windows=windows,
        owners=assign_clips(windows, cut.tensor * cut.pipeline),
        micro=micro,
        scores=(text_scores, audio_scores),
        length=length,
        text_stretches=any(sum(chosen[place].segments for place in row) > 1 for row in rows),
        audio_stretches=True,
        tokens_per_window=tokens_per_window,
        tokens=sum(tokens),
    )


def _own_scores(sample: Sample) -> float:
    """Each question sees itself."""
    return sample.tokens**2 / max(1, sample.segments)


def _load(
    *,
    windows: Sequence[int],
    owners: Sequence[Sequence[int]],
    micro: Sequence[tuple[int, int, int]],
    scores: tuple[float, float],
    length: int,
    text_stretches: bool,
    audio_stretches: bool,
    tokens_per_window: int,
    tokens: int,
) -> Load:
    busiest = max(owners, key=lambda clips: sum(windows[clip] for clip in clips))
    own = [windows[clip] for clip in busiest]
    calls = [(len(group), max(own[i] for i in group) * tokens_per_window) for group in length_groups(own)]
    padded = sorted(max(1, heard * tokens_per_window) for _, heard, _ in micro)
    return Load(
        micro_batches=len(micro),
        rows=max(rows for rows, _, _ in micro),
        length=length,
        keys=padded[-1],
        mean_keys=sum(padded) / len(padded),
        supervised=max(supervised for _, _, supervised in micro),
        mean_supervised=sum(supervised for _, _, supervised in micro) / len(micro),
        text_scores=scores[0] / len(micro),
        audio_scores=scores[1] / len(micro),
        text_stretches=text_stretches,
        audio_stretches=audio_stretches,
        windows=sum(windows),
        own_windows=sum(own),
        clip_tokens=sum(clips * each for clips, each in calls),
        clip_scores=sum(clips * each**2 for clips, each in calls),
        largest_call=max((clips * each for clips, each in calls), default=0),
        tokens=tokens,
    )


def mean(loads: Iterable[Load]) -> Load:
    """The middle step, field by field."""
    loads = list(loads)
    return Load(**{
        field.name: any(values) if field.type is bool else sum(values) / len(loads)
        for field in fields(Load)
        if (values := [getattr(load, field.name) for load in loads])
    })  # fmt: skip
