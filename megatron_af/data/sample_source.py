"""From a draw to a sample: the row, and what the stage's objective makes of it this time.

    source = SampleSource(config, stage, texts, loader, report=folder / "replaced.jsonl")
    sample = source.sample(step, slot)

A row that cannot be used is exchanged for another one of its data set, always the same one; each exchange is
reported as a line of JSON, and the run stops when there are too many.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dali_pipes.waves import AudioError
from megatron_af.config import Config, StageConfig
from megatron_af.data.batch import StepText
from megatron_af.data.buckets import BucketedSampler
from megatron_af.data.clips import ClipLoader
from megatron_af.data.rows import Row, RowError
from megatron_af.data.sampler import BlendSampler, Draw
from megatron_af.data.shards import open_rows, row_durations
from megatron_af.data.storage import DataRoot
from megatron_af.files import append

ATTEMPTS = 8
"""Rows tried in place of one that cannot be used."""
GRACE = 8
"""Replacements that never stop a run, however short."""
BY_CHANCE = 4.0
"""Standard deviations by which one rank's replacements may exceed the allowed part. Each counts its own after every
sample: of data well inside the limit, one of many ranks would be above it at some time."""


class TooManyReplacements(RuntimeError):
    """More of the data is unusable than ``data.max_replaced_fraction`` allows."""


@dataclass(frozen=True, kw_only=True)
class Sample[Said]:
    """One row as it takes part in one step."""

    row: Row
    """As the objective takes it: its clips are what is heard."""
    dataset: int
    """Index in the sorted names of the blend."""
    text: Said
    """What the objective takes from the row."""
    refused: tuple[RowError | AudioError, ...] = ()
    """Why rows that were drawn before it for its place were not taken."""


type Shown = tuple[tuple[str, bool, bool], ...]
"""Pieces of a text: what it says, whether it is learnt, whether it is a special token."""


class Texts[Said, Text: StepText](Protocol):
    """An objective's side of the data; the same on every rank, whatever the layout."""

    def of(self, row: Row, draw: Draw) -> tuple[Row, Said]:
        """What it takes from a row; everything random about it follows from ``draw``.

        Returns:
            The row, with the clips alone that are to be heard, and what is said.

        Raises:
            RowError: the row is of no use to it, and is exchanged for another one.
        """

    def collate(
        self, samples: Sequence[Sample[Said]], heard: Sequence[tuple[int, ...]], windows: Sequence[int]
    ) -> Text:
        """Its side of a step's batch.

        Args:
            heard: per sample, its clips as indices into ``windows``.
            windows: of every distinct clip of the step.
        """

    def shown(self, row: Row) -> Sequence[Shown]:
        """Everything it can take from a row, for people to read."""


def rows_of(config: Config, stage: StageConfig) -> dict[str, Sequence[Row]]:
    """Rows of each data set of the blend. Raises ``ValueError`` for unknown ones, ``FileNotFoundError`` for missing."""
    root = DataRoot(config.data.root)
    unknown = [name for name in stage.blend if name not in config.data.datasets]
    if unknown:
        raise ValueError(f"stage.blend names {', '.join(unknown)}; add to data.datasets, or correct the name")
    return {name: open_rows(root, config.data.datasets[name].manifest) for name in sorted(stage.blend)}


def sampler_of(config: Config, stage: StageConfig, rows: Mapping[str, Sequence[Row]]) -> BlendSampler:
    """The order of ``config.stage``'s samples, the same wherever it is made."""
    seed = f"{config.seed}/{config.stage}"
    if not stage.length_buckets:
        return BlendSampler({name: len(found) for name, found in rows.items()}, stage.blend, seed)

    def windows(clips: Iterable[float]) -> int:
        return sum(config.model.front_end.windows_of(seconds, stage.max_windows) for seconds in clips)

    lengths = {
        name: np.fromiter(map(windows, row_durations(found)), np.int32, len(found)) for name, found in rows.items()
    }
    return BucketedSampler(lengths, stage.blend, seed, ends=stage.length_buckets, batch=stage.global_batch_samples)


class SampleSource[Said]:
    """Samples of a stage by step and slot; the same on every rank.

    Args:
        report: where replacements are written.
        speaks: write down exchanged rows, too; one rank of a model-parallel group does, since all exchange the same.
    """

    def __init__(
        self,
        config: Config,
        stage: StageConfig,
        texts: Texts[Said, Any],
        loader: ClipLoader,
        report: Path,
        *,
        speaks: bool = True,
    ) -> None:
        self._rows = rows_of(config, stage)
        self._sampler = sampler_of(config, stage, self._rows)
        self._stage, self._texts, self._loader = stage, texts, loader
        self._report, self._speaks = report, speaks
        self._allowed = config.data.max_replaced_fraction
        self._drawn = self._replaced = 0
        self._seen_bad: set[tuple[str, int | str]] = set()

    def sample(self, step: int, slot: int) -> Sample[Said]:
        """The sample at a place of the global batch.

        Raises:
            TooManyReplacements: the data is worse than the configuration allows.
        """
        draw = self._sampler.draw(step * self._stage.global_batch_samples + slot)
        self._drawn += 1
        index = draw.row
        refused: list[RowError | AudioError] = []
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return replace(self._sample(draw, index), refused=tuple(refused))
            except (RowError, AudioError) as error:
                refused.append(error)
                self.report(step, draw.dataset, index, str(error), write=self._speaks)
                index = self._sampler.replacement(draw, attempt)
        raise TooManyReplacements(
            f"data set {draw.dataset}: {ATTEMPTS} rows in a row cannot be used (last: {refused[-1]}); what was left "
            f"out stands in {self._report}"
        )

    def report(self, step: int, dataset: str, row: int | str, problem: str, *, write: bool = True) -> None:
        """Counts a replacement, writes it down once, and stops the run when there are too many."""
        self._replaced += 1
        if write and (dataset, row) not in self._seen_bad:
            self._seen_bad.add((dataset, row))
            line = {"step": step, "dataset": dataset, "row": row, "problem": problem}
            append(self._report, json.dumps(line) + "\n")
        expected = self._allowed * self._drawn
        if self._replaced > max(GRACE, expected + BY_CHANCE * math.sqrt(expected)):
            raise TooManyReplacements(
                f"{self._replaced} of {self._drawn} samples could not be used (last: {dataset}, row {row}: {problem}); "
                f"data.max_replaced_fraction allows {self._allowed:.1%}. Run tools/prepare_data.py: prepare leaves bad "
                f"audio out, stats counts what is too long; all of them stand in {self._report}"
            )

    def dataset_name(self, index: int) -> str:
        return self._sampler.names[index]

    def _sample(self, draw: Draw, index: int) -> Sample[Said]:
        row, text = self._texts.of(self._rows[draw.dataset][index], draw)
        for clip in row.clips:
            self._loader.check(clip)
        return Sample(row=row, dataset=self._sampler.names.index(draw.dataset), text=text)
