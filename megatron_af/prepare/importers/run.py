"""The import itself: every row of a layout is written, or left out and named; every other file is listed.

    report = import_dataset(config, "clotho", progress)

One bad row, file, name or shard never ends an import: what can be read of the rest is written. What makes the whole
layout unreadable (a table without the columns, JSON that is none) ends it before anything is written.
"""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import batched

from dali_pipes.waves import AudioError
from megatron_af.config import Config, ImportConfig
from megatron_af.data.rows import Row, RowError, parse_row, to_json
from megatron_af.data.storage import DataRoot, StorageError
from megatron_af.prepare.importers.audio_flamingo import audio_flamingo
from megatron_af.prepare.importers.conversations import conversations
from megatron_af.prepare.importers.label_folders import label_folders
from megatron_af.prepare.importers.layout import Maker, Noted, PassedOver
from megatron_af.prepare.importers.made_rows import answered
from megatron_af.prepare.importers.own_rows import own_rows
from megatron_af.prepare.importers.records import file_names, json_records
from megatron_af.prepare.importers.table import table
from megatron_af.prepare.importers.texts import odd_texts
from megatron_af.prepare.importers.web_dataset import web_dataset
from megatron_af.progress import Progress

READERS = 16
"""Threads that open recordings for their lengths: what they wait for is the disk or the network."""
LAYOUTS = {
    "audio_flamingo": audio_flamingo,
    "conversations": conversations,
    "csv": table,
    "json": json_records,
    "files": file_names,
    "labels": label_folders,
    "webdataset": web_dataset,
    "rows": own_rows,
}


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What came of an import."""

    rows: int
    """Rows written."""
    left_out: dict[str, int]
    """Reason -> rows left out."""
    without_recording: int
    """Of the rows written, those of text alone."""
    renamed: int
    """Of the rows written, those that got an id of their own, for theirs was another's or empty."""
    passed_over: int
    """Files that are no recordings, and were not expected to be."""
    notes: dict[str, tuple[int, str]]
    """What should be known of rows that were written -> how many there are, and the first."""
    report: str
    """Where each row and file that was left out stands with its problem, and each note, relative to the data root."""

    @property
    def bad_fraction(self) -> float:
        bad = sum(self.left_out.values())
        return bad / max(1, self.rows + bad)


def import_dataset(config: Config, name: str, progress: Progress) -> ImportReport:
    """Writes the rows of a data set's origin to its source.

    Raises:
        ValueError: the configuration lacks something, or the layout is not what ``origin.format`` says.
        StorageError: the layout's file cannot be read.
    """
    dataset = config.data.datasets.get(name)
    if dataset is None or dataset.origin is None or not (dataset.source or dataset.manifest).endswith(".jsonl"):
        raise ValueError(
            f"data.datasets.{name}: importing needs origin, and source (or manifest) that ends with .jsonl; "
            f"got {dataset or 'no such data set'}"
        )
    root = DataRoot(config.data.root)
    target = dataset.source or dataset.manifest
    path = f"{target.removesuffix('.jsonl')}.left_out.jsonl"
    rows, silent, passed, reasons, ids, notes = 0, 0, 0, Counter[str](), _Ids(), _Notes()
    made = lines_of(rows_of(root, dataset.origin))
    with root.writing(target) as good, root.writing(path) as report:
        for line in map(_answered, made):
            progress.update(f"import {name}", rows + sum(reasons.values()), None)
            if isinstance(line, Line):
                own = ids.own(line.row.id, rows + sum(reasons.values()))
                text = line.text if own == line.row.id else to_json(replace(line.row, id=own))
                good.write(text.encode() + b"\n")
                rows += 1
                silent += not line.row.clips
                for kind, odd in odd_texts(line.row):
                    report.write(notes.line(kind, f"{own}: {odd}", row=rows + sum(reasons.values())))
                continue
            if isinstance(line, Noted):
                report.write(notes.line(line.kind, str(line)))
                continue
            entry: dict[str, str | int]
            if isinstance(line, PassedOver):
                passed += 1
                entry = {"file": line.name, "reason": "passed over", "problem": str(line)}
            else:
                reason = line.reason if isinstance(line, AudioError) else "bad row"
                reasons[reason] += 1
                entry = {"row": rows + sum(reasons.values()), "reason": reason, "problem": str(line)}
            report.write(json.dumps(entry).encode() + b"\n")
    for written in (target, path):  # an import that was killed left half of them beside
        root.sweep_beside(written)
    return ImportReport(
        rows=rows,
        left_out=dict(reasons.most_common()),
        without_recording=silent,
        renamed=ids.renamed,
        passed_over=passed,
        notes=notes.of_kinds,
        report=path,
    )


@dataclass(frozen=True)
class Line:
    """A row that can be written, and as which line."""

    row: Row
    text: str


class _Notes:
    """How many there are of each kind, and the first."""

    def __init__(self) -> None:
        self.of_kinds: dict[str, tuple[int, str]] = {}

    def line(self, kind: str, what: str, **where: int) -> bytes:
        """The note's line in the report."""
        count, first = self.of_kinds.get(kind, (0, what))
        self.of_kinds[kind] = count + 1, first
        return json.dumps({**where, "reason": f"note: {kind}", "problem": what}).encode() + b"\n"


class _Ids:
    """Ids that differ: what is made of rows later is known by theirs."""

    def __init__(self) -> None:
        self.renamed = 0
        self._seen: dict[str, int] = {}

    def own(self, wanted: str, place: int) -> str:
        """The id, if it is new and says something; else another one.

        Args:
            place: of the row among all, from 0.
        """
        found = first = wanted if wanted.strip() else str(place)
        while found in self._seen:
            self._seen[first] += 1
            found = f"{first}~{self._seen[first]}"
        self._seen[found] = 1
        self.renamed += found != wanted
        return found


def lines_of(makers: Iterator[Maker]) -> Iterator[Line | Exception]:
    """Rows, or what is wrong with them, in order."""

    def line(make: Maker) -> Line | Exception:
        try:
            made = to_json(make())
            made.encode()
            row = parse_row(json.loads(made), "the row made of it")
        except (RowError, AudioError, StorageError, PassedOver, Noted) as error:
            return error
        except UnicodeEncodeError:
            return RowError("the row made of it: its text holds half a character (a lone surrogate)")
        return Line(row, made)

    with ThreadPoolExecutor(READERS) as pool:
        for some in batched(makers, 64 * READERS):
            yield from pool.map(line, some)


def _answered(line: Line | Exception) -> Line | Exception:
    """The line, or what is wrong with an answer that is none of its options."""
    if isinstance(line, Line):
        try:
            answered(line.row)
        except RowError as error:
            return error
    return line


def rows_of(root: DataRoot, origin: ImportConfig) -> Iterator[Maker]:
    """One function per row of the layout; calling it gives the row, or raises what is wrong with it."""
    return LAYOUTS[origin.format](root, origin)
