"""Caption data out of long videos: cut them into segments, keep those where sound and picture tell different things.

    report = cut(config)                            # videos in, segments out, for the captioners to fill in
    report = select(config, similarity)             # captioned segments in, rows out

AF-CLAP's mining (Ghosh et al. 2025, section 3): videos are cut into 10 s segments; one model captions the picture,
another the sound; a segment is dropped where the two captions agree too closely, since its sound then adds nothing to
its picture. The captioners run outside: their texts come as columns. Rows point into the videos; ``prepare_data.py
prepare`` takes the audio out through FFmpeg and leaves silent and broken pieces out.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dali_pipes.waves import AudioError, recording_seconds
from megatron_af.data.rows import Clip, Row, to_json
from megatron_af.files import appearing, write
from megatron_af.foreign import opened, parse_json

Similarity = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""Similarity of each pair of texts, 1 for the same meaning."""


@dataclass(frozen=True, kw_only=True)
class MiningConfig:
    root: str
    """Folder of the videos; paths are relative to it."""
    videos: str
    """JSONL of ``{"path": …, "id": …}``; the id may be left out."""
    segments: str
    """JSONL that ``cut`` writes, one segment a line, with empty ``visual_caption`` and ``audio_caption``."""
    captioned: str
    """The same with the captions filled in; ``caption``, where a line has one, is what the row will say."""
    output: str
    """JSONL of the rows that ``select`` keeps; ``OUTPUT.report`` says what became of the others."""
    segment_seconds: float = 10.0
    shortest_seconds: float = 3.0
    """A tail shorter than this is dropped."""
    most_similarity: float = 0.7
    """Segments whose two captions are more alike than this are dropped. The paper does not give its value."""
    text_model: str = ""
    """Folder or hub name of a sentence encoder that compares the captions."""
    batch_texts: int = 256


@dataclass(frozen=True, kw_only=True)
class Report:
    kept: int
    dropped: dict[str, int]
    """Reason -> how many."""


def cut(config: MiningConfig) -> Report:
    """Cut every video with sound into segments; the last, shorter one stays if it is long enough."""
    dropped: Counter[str] = Counter()
    kept = 0
    with appearing(Path(config.segments)) as draft, draft.open("w", encoding="utf-8") as file:
        for number, video in enumerate(_lines(config.videos)):
            if not isinstance(video.get("path"), str):
                raise ValueError(f"{config.videos}:{number + 1}: expected a video's path, got {json.dumps(video)[:80]}")
            try:
                seconds = recording_seconds(Path(config.root) / video["path"])
            except AudioError:
                dropped["video without sound that can be read"] += 1
                continue
            name = video.get("id", Path(video["path"]).stem)
            for part, (start, duration) in enumerate(segments(seconds, config)):
                segment = {
                    "id": f"{name}-{part:05d}",
                    "path": video["path"],
                    "start": start,
                    "duration": duration,
                    "visual_caption": "",
                    "audio_caption": "",
                }
                file.write(json.dumps(segment, ensure_ascii=False) + "\n")
                kept += 1
    return Report(kept=kept, dropped=dict(dropped))


def segments(seconds: float, config: MiningConfig) -> Iterator[tuple[float, float]]:
    """Start and duration of each segment of a recording."""
    number, length = 0, config.segment_seconds
    while (left := round(seconds - number * length, 3)) >= config.shortest_seconds:
        yield round(number * length, 3), min(length, left)
        number += 1


def select(config: MiningConfig, similarity: Similarity) -> Report:
    """Write the rows of the segments whose sound says more than their picture; a report says what was dropped.

    Raises:
        ValueError: a line lacks a column; the message names it.
    """
    dropped: Counter[str] = Counter()
    kept = 0
    values: list[float] = []
    with appearing(Path(config.output)) as draft, draft.open("w", encoding="utf-8") as file:
        for batch in _batches(config.captioned, config.batch_texts):
            complete = []
            for number, segment in batch:
                for column in ("id", "path", "start", "duration", "visual_caption", "audio_caption"):
                    if column not in segment:
                        raise ValueError(f"{config.captioned}:{number}: the column {column!r} is missing")
                if all(str(segment[column] or "").strip() for column in ("visual_caption", "audio_caption")):
                    complete.append(segment)
                else:
                    dropped["a caption is empty"] += 1
            alike = similarity(
                [segment["visual_caption"] for segment in complete], [segment["audio_caption"] for segment in complete]
            )
            values += [float(value) for value in alike]
            for segment, value in zip(complete, alike, strict=True):
                if value > config.most_similarity:
                    dropped["the captions of sound and picture agree"] += 1
                    continue
                file.write(to_json(_row(segment, float(value))) + "\n")
                kept += 1
    report = Report(kept=kept, dropped=dict(dropped))
    record = {"kept": kept, "dropped": report.dropped, "similarity_deciles": deciles(values)}
    write(Path(f"{config.output}.report"), json.dumps(record, indent=1) + "\n")
    return report


def deciles(values: Sequence[float]) -> list[float]:
    """Smallest value, nine deciles, largest: what to choose a threshold by."""
    ordered = sorted(values)
    return [round(ordered[round(i * (len(ordered) - 1) / 10)], 4) for i in range(11)] if ordered else []


def _row(segment: dict[str, Any], similarity: float) -> Row:
    return Row(
        id=str(segment["id"]),
        clips=(Clip(path=segment["path"], start=segment["start"], duration=segment["duration"]),),
        captions=(str(segment.get("caption") or segment["audio_caption"]).strip(),),
        meta={"visual_caption": segment["visual_caption"], "caption_similarity": round(similarity, 4)},
    )


def _lines(path: str) -> Iterator[dict[str, Any]]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; correct the job's configuration")
    with opened(Path(path)) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                value = parse_json(line, f"{path}:{number}")
                if not isinstance(value, dict):
                    raise ValueError(f"{path}:{number}: expected an object, got {line[:80].decode(errors='replace')!r}")
                yield value


def _batches(path: str, size: int) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    batch: list[tuple[int, dict[str, Any]]] = []
    for number, value in enumerate(_lines(path), 1):
        batch.append((number, value))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
