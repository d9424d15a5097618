"""What was asked of a benchmark and what was said to it, question by question, and the table that keeps it.

    write_answered(path, answered, {"match": scores.each})        # Parquet: a line for each question
    answered = read_answered(path)
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_af.data.rows import Clip
from megatron_af.files import appearing
from megatron_af.foreign import file_at
from megatron_af.runs.results import SCORE


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One question of a benchmark."""

    id: str
    group: str
    """The recording: questions about one are no independent ones."""
    skill: str
    prompt: str
    """In the first wording."""
    references: tuple[str, ...]
    """Right answers; of a question with options, one."""
    options: tuple[str, ...] = ()
    """In the order in which they were shown."""
    labels: tuple[str, ...] = ()
    """All that is true, where several labels are."""
    audio: str = ""
    """Path of the recording, or of the shard that holds it, below the data root; then as in :class:`Clip`."""
    start: float = 0.0
    duration: float = 0.0
    offset: int = 0
    length: int = 0
    digest: str = ""
    answers: tuple[str | None, ...] = ()
    """To each wording, as the model wrote it; None: it was too long to be asked."""
    probed: tuple[str | None, ...] = ()
    """To each probe of the benchmark."""
    logprobs: tuple[float, ...] = ()
    """Of each option as the whole answer to the first wording."""

    @property
    def clip(self) -> Clip:
        """What it was asked about."""
        return Clip(
            path=self.audio,
            start=self.start,
            duration=self.duration,
            offset=self.offset,
            length=self.length,
            digest=self.digest,
        )


@dataclass(frozen=True, kw_only=True)
class Said:
    """An answer as metrics see it."""

    id: str
    prompt: str
    references: tuple[str, ...]
    options: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    heard: str = ""
    logprobs: tuple[float, ...] = ()


_SCHEMA = {
    **dict.fromkeys(("id", "group", "skill", "prompt", "audio", "digest"), pa.string()),
    **dict.fromkeys(("references", "options", "labels", "answers", "probed"), pa.list_(pa.string())),
    **dict.fromkeys(("start", "duration"), pa.float64()),
    **dict.fromkeys(("offset", "length"), pa.int64()),
    "logprobs": pa.list_(pa.float64()),
}


def write_answered(path: Path, answered: Sequence[Answered], scores: Mapping[str, Sequence[float | None]]) -> None:
    """
    Args:
        scores: name -> what each answer was worth; None: unparseable, and nothing; NaN: nobody knows.
    """
    lines = [asdict(one) for one in answered]
    columns: dict[str, Any] = {
        field.name: pa.array([line[field.name] for line in lines], _SCHEMA[field.name]) for field in fields(Answered)
    }
    columns |= {f"{SCORE}{name}": pa.array(each, pa.float64()) for name, each in scores.items()}
    with appearing(path) as partial:
        pq.write_table(pa.table(columns), partial)


def read_answered(path: Path) -> list[Answered]:
    table = pq.read_table(file_at(path))
    names = [field.name for field in fields(Answered) if field.name in table.column_names]  # there were fewer once
    lines: list[dict[str, Any]] = table.select(names).to_pylist()
    return [_answered(line) for line in lines]


def _answered(line: dict[str, Any]) -> Answered:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in line.items()}
    return Answered(**values)


def read_scores(path: Path) -> dict[str, dict[str, float | None]]:
    """Name -> question's id -> what its answer was worth, as of :func:`write_answered`."""
    table = pq.read_table(file_at(path))
    ids = table["id"].to_pylist()
    return {
        name.removeprefix(SCORE): dict(zip(ids, table[name].to_pylist(), strict=True))
        for name in table.column_names
        if name.startswith(SCORE)
    }
