"""The text side of a stage that answers: rows rendered as token segments, packed and padded to micro-batches.

texts = AnswerTexts(config, stage, tokenizer)
row, text = texts.of(row, draw)                     # token ids of the questions it is asked this time
batch = texts.collate(samples, heard, windows)      # TextBatch: micro-batches of text rows
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from megatron_af.config import Config, StageConfig
from megatron_af.data.batch import IGNORED, TextBatch
from megatron_af.data.collate import PackedRow, Segment, collate, padded_length
from megatron_af.data.packing import pack
from megatron_af.data.rows import Question, Row, RowError
from megatron_af.data.sample_source import Sample, Shown
from megatron_af.data.sampler import Draw, keyed_hash
from megatron_af.data.templates import STYLES, RowText, TooLong, answer_labels, render
from megatron_af.text.tokenizer import Tokenizer


class AnswerTexts:
    """Text rows of a stage with ``objective: answer``."""

    def __init__(self, config: Config, stage: StageConfig, tokenizer: Tokenizer) -> None:
        self._stage, self._tokenizer = stage, tokenizer
        self._style = STYLES[config.data.text_style]
        self._datasets = config.data.datasets
        self._length_multiple = config.parallel.tensor
        # The interleaved pipeline schedule takes micro-batches in groups of the pipeline's size.
        self._micro_batch_multiple = config.parallel.pipeline if config.parallel.virtual_pipeline > 1 else 1
        self._immediate = config.model.cross_attention.immediate

    def of(self, row: Row, draw: Draw) -> tuple[Row, RowText]:
        """
        Raises:
            RowError: nothing to answer, or (``TooLong``) nothing that fits into ``max_text_tokens``, or
                (``UnknownWords``) nothing that the tokenizer can write.
        """
        stage = self._stage
        asked = replace(row, questions=chosen_questions(row, draw, stage.questions_per_sample))
        prefix = self._datasets[draw.dataset].task_prefix_probability * 2**64 > keyed_hash(draw.index, draw.row)
        text = render(asked, self._tokenizer, stage.max_text_tokens, style=self._style, task_prefix=prefix)
        return text.row, text

    def collate(
        self, samples: Sequence[Sample[RowText]], heard: Sequence[tuple[int, ...]], windows: Sequence[int]
    ) -> TextBatch:
        """Micro-batches of the step's samples, packed where the stage packs.

        Args:
            heard: the clips of each sample, as indices into ``windows``.
        """
        groups: Sequence[Sequence[int]] = [[i] for i in range(len(samples))]
        if self._stage.pack_tokens:
            sizes = [
                (sum(map(len, sample.text.segments)), sum(windows[clip] for clip in clips))
                for sample, clips in zip(samples, heard, strict=True)
            ]
            multiple = self._stage.micro_batch_samples * self._micro_batch_multiple
            groups = pack(sizes, self._stage.pack_tokens, multiple)
        rows = [packed_row([samples[i] for i in group], [heard[i] for i in group]) for group in groups]
        batch = text_batch(
            rows,
            self._tokenizer,
            self._stage.micro_batch_samples,
            length_multiple=self._length_multiple,
            immediate=self._immediate,
        )
        too_long: Counter[int] = Counter()
        for sample in samples:
            lost = sum(error.questions for error in sample.refused if isinstance(error, TooLong))
            too_long[sample.dataset] += sample.text.too_long + lost
        return replace(batch, too_long=+too_long)

    def shown(self, row: Row) -> list[Shown]:
        """A text per question (one for examples and dialogues), with the supervised tokens marked; or why there is
        none."""
        try:
            text = render(row, self._tokenizer, self._stage.max_text_tokens, style=self._style)
        except RowError as error:
            return [((str(error), False, False),)]
        return [_mark(ids, self._tokenizer) for ids in text.segments]


def text_batch(
    rows: Sequence[PackedRow], tokenizer: Tokenizer, micro_batch: int, *, length_multiple: int, immediate: bool
) -> TextBatch:
    """Text rows as micro-batches of one common length."""
    length = padded_length(max((row.num_tokens for row in rows), default=0), length_multiple)
    return TextBatch(
        rows=tuple(
            collate(rows[i : i + micro_batch], tokenizer, length, immediate=immediate)
            for i in range(0, len(rows), micro_batch)
        ),
        num_tokens=sum(row.num_tokens for row in rows),
    )


def packed_row(samples: Sequence[Sample[RowText]], heard: Sequence[tuple[int, ...]]) -> PackedRow:
    """Samples side by side in one row, each with its own span of the row's clips."""
    segments: list[Segment] = []
    clips: list[int] = []
    for sample, own in zip(samples, heard, strict=True):
        segments += [
            Segment(ids=ids, first_audio=len(clips), num_audios=len(own), dataset=sample.dataset)
            for ids in sample.text.segments
        ]
        clips += own
    return PackedRow(segments=tuple(segments), clips=tuple(clips))


def _mark(ids: list[int], tokenizer: Tokenizer) -> Shown:
    """Runs of tokens of one kind; a token is supervised where the position before it has it as its label."""
    labels = answer_labels(np.array([ids]), np.zeros((1, len(ids)), int), tokenizer)[0]
    targets = [False, *(labels[:-1] != IGNORED).tolist()]
    special = {tokenizer.eos_id, tokenizer.bos_id, *tokenizer.added.values()}
    runs: list[tuple[list[int], bool, bool]] = []
    for token, target in zip(ids, targets, strict=True):
        kind = (target, token in special)
        if runs and runs[-1][1:] == kind and not kind[1]:
            runs[-1][0].append(token)
        else:
            runs.append(([token], *kind))
    return tuple((tokenizer.decode(run, skip_special=False), on, is_special) for run, on, is_special in runs)


def chosen_questions(row: Row, draw: Draw, count: int) -> tuple[Question, ...]:
    """Which questions a row is asked at this pass: over the passes all of them, equally often.

    Interleaved examples and the turns of a dialogue belong together and are never chosen from.
    """
    if not row.questions:
        raise RowError(f"row {row.id}: no question to answer")
    total = len(row.questions)
    if row.template != "single" or total <= count:
        return row.questions
    order = sorted(range(total), key=lambda question: keyed_hash(draw.row, question))
    begin = draw.dataset_pass * count
    return tuple(row.questions[order[(begin + i) % total]] for i in range(count))
