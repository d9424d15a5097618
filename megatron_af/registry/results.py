"""The evaluation of a version: numbers by name, and scores by sample where gates compare two versions.

    results = Results.load(Path("runs/demo"))
    results.metrics["overall/audio"], results.scores("correct")

``summary.json`` holds numbers at any depth: ``{"overall": {"audio": 52.1}}`` is the metric ``overall/audio``.
``samples.jsonl`` has a line per sample: ``{"id": "scene-7#2", "group": "scene-7", "correct": 1}``; every number but
``id`` and ``group`` is a score, and samples of one group (questions about one scene) are drawn together.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUMMARY, SAMPLES = "summary.json", "samples.jsonl"


class BadResults(ValueError):
    """An evaluation that cannot be read; the message names the file and line."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    id: str
    group: str
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Results:
    metrics: dict[str, float]
    samples: tuple[Sample, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> "Results":
        """Read what is there; a folder without results gives empty ones, which no gate passes."""
        summary, samples = folder / SUMMARY, folder / SAMPLES
        metrics = dict(_numbers(_parse(summary.read_text(), str(summary)))) if summary.is_file() else {}
        lines = samples.read_text().splitlines() if samples.is_file() else []
        return cls(
            metrics=metrics,
            samples=tuple(_sample(line, f"{samples}:{number}") for number, line in enumerate(lines, 1) if line.strip()),
        )

    def scores(self, name: str) -> dict[str, tuple[str, float]]:
        """Sample id -> (group, score), for the samples that have this score."""
        return {s.id: (s.group, s.scores[name]) for s in self.samples if name in s.scores}

    def score_names(self) -> list[str]:
        return sorted({name for sample in self.samples for name in sample.scores})


def _numbers(value: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield prefix, float(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{prefix}/{key}" if prefix else str(key))


def _sample(line: str, where: str) -> Sample:
    record = _parse(line, where)
    if not isinstance(record, dict) or "id" not in record:
        raise BadResults(f'{where}: expected an object with an "id", got {line[:80]}')
    scores = {
        name: float(value)
        for name, value in record.items()
        if name not in ("id", "group") and isinstance(value, int | float)
    }
    identity = str(record["id"])
    return Sample(id=identity, group=str(record.get("group", identity)), scores=scores)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadResults(f"{where}: no JSON ({error}); write the evaluation again") from None
