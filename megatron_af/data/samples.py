"""From a draw to a sample: the row, the questions asked of it this time, and their tokens.

    source = SampleSource(config, stage, loader, report=folder / "replaced.jsonl")
    sample = source.sample(step, slot)

A row that cannot be used is exchanged for another one of its data set, always the same one; each exchange is
reported as a line of JSON, and the run stops when there are too many.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from dali_pipes.waves import AudioError
from megatron_af.config import Config, StageConfig
from megatron_af.data.clips import ClipLoader
from megatron_af.data.rows import Question, Row, RowError, Span
from megatron_af.data.sampler import BlendSampler, Draw, keyed_hash
from megatron_af.data.shards import open_rows
from megatron_af.data.storage import DataRoot
from megatron_af.data.templates import STYLES, render
from megatron_af.text.tokenizer import Tokenizer

ATTEMPTS = 8
"""Rows tried in place of one that cannot be used."""
GRACE = 8
"""Replacements that never stop a run, however short."""


class TooManyReplacements(RuntimeError):
    """More of the data is unusable than ``data.max_replaced_fraction`` allows."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row as it takes part in one step."""

    row: Row
    dataset: int
    """Index in the sorted names of the blend."""
    questions: tuple[Question, ...]
    segments: tuple[list[int], ...]
    """Token ids; empty in a contrastive stage."""

    @property
    def num_tokens(self) -> int:
        return sum(len(ids) for ids in self.segments)


class SampleSource:
    """Samples of a stage by step and slot; the same on every rank.

    Args:
        report: where replacements are written.
        speaks: write down exchanged rows, too; one rank of a model-parallel group does, since all exchange the same.
    """

    def __init__(
        self, config: Config, stage: StageConfig, loader: ClipLoader, report: Path, *, speaks: bool = True
    ) -> None:
        root = DataRoot(config.data.root)
        unknown = [name for name in stage.blend if name not in config.data.datasets]
        if unknown:
            raise ValueError(f"stage.blend names {', '.join(unknown)}; add to data.datasets, or correct the name")
        self.tokenizer = Tokenizer.load(config.data.tokenizer)
        self._rows = {name: open_rows(root, config.data.datasets[name].manifest) for name in sorted(stage.blend)}
        self._sampler = BlendSampler(
            {name: len(rows) for name, rows in self._rows.items()}, stage.blend, f"{config.seed}/{config.stage}"
        )
        self._stage, self._loader, self._report, self._speaks = stage, loader, report, speaks
        self._style = STYLES[config.data.text_style]
        self._prefixes = {name: config.data.datasets[name].task_prefix_probability for name in stage.blend}
        self._allowed = config.data.max_replaced_fraction
        self._drawn = self._replaced = 0
        self._seen_bad: set[tuple[str, int | str]] = set()

    def sample(self, step: int, slot: int) -> Sample:
        """The sample at a place of the global batch.

        Raises:
            TooManyReplacements: the data is worse than the configuration allows.
        """
        draw = self._sampler.draw(step * self._stage.global_batch_samples + slot)
        self._drawn += 1
        index = draw.row
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._sample(draw, index)
            except (RowError, AudioError) as error:
                self.report(step, draw.dataset, index, str(error), write=self._speaks)
                index = self._sampler.replacement(draw, attempt)
        raise TooManyReplacements(f"data set {draw.dataset}: {ATTEMPTS} rows in a row cannot be used, see the report")

    def report(self, step: int, dataset: str, row: int | str, problem: str, *, write: bool = True) -> None:
        """Counts a replacement, writes it down once, and stops the run when there are too many."""
        self._replaced += 1
        if write and (dataset, row) not in self._seen_bad:
            self._seen_bad.add((dataset, row))
            self._report.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"step": step, "dataset": dataset, "row": row, "problem": problem}) + "\n"
            file = os.open(self._report, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(file, line.encode())  # one write: lines of several processes do not mix
            finally:
                os.close(file)
        if self._replaced > max(GRACE, self._allowed * self._drawn):
            raise TooManyReplacements(
                f"{self._replaced} of {self._drawn} samples could not be used (last: {dataset}, row {row}: {problem}); "
                f"data.max_replaced_fraction allows {self._allowed:.1%}. Run tools/prepare_data.py, which leaves bad "
                f"audio out; all of them stand in {self._report}"
            )

    def dataset_name(self, index: int) -> str:
        return self._sampler.names[index]

    def _sample(self, draw: Draw, index: int) -> Sample:
        row = self._rows[draw.dataset][index]
        for clip in row.clips:
            self._loader.check(clip)
        dataset = self._sampler.names.index(draw.dataset)
        if self._stage.objective == "contrastive":
            if not (row.captions or row.spans) or len(row.clips) != 1:
                raise RowError(f"row {row.id}: a contrastive stage needs one clip and at least one caption")
            described: list[Row | Span] = [row, *row.spans]
            for said in described:
                both = {c.lower().strip() for c in said.captions} & {n.lower().strip() for n in said.negatives}
                if both:
                    raise RowError(f"row {row.id}: {min(both)!r} is a caption and a negative at once; remove one")
            return Sample(row=row, dataset=dataset, questions=(), segments=())
        questions = chosen_questions(row, draw, self._stage.questions_per_sample)
        prefix = self._prefixes[draw.dataset] * 2**64 > keyed_hash(draw.index, draw.row)
        segments = render(
            row, questions, self.tokenizer, self._stage.max_text_tokens, style=self._style, task_prefix=prefix
        )
        return Sample(row=row, dataset=dataset, questions=questions, segments=tuple(segments))


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
