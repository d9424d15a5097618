"""Recordings that questions are made of: each once, whatever it is called, and a tenth of them held out if wanted.

    contents = contents_of(root, folder, rows)          # parts.py
    kept, copies = without_copies(root, rows, contents) # places of rows; place of a copy -> place of what it copies
    held = held_out(rows, contents)                     # for each row, whether its recordings are held out

Which recordings are held out follows from what each holds, and from nothing else: those that were stay so when others
are added, and rows that share one stand on the same side.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from megatron_af.data.rows import Row
from megatron_af.data.storage import DataRoot
from megatron_af.prepare.parts import joined

HELD_OUT = 0.1
"""Part of the recordings (LongAudioBench is a tenth of LongAudio)."""


def without_copies(
    root: DataRoot, rows: Sequence[Row], contents: Sequence[Sequence[str]]
) -> tuple[list[int], dict[int, int]]:
    """Rows about the same piece of the same recording under another name are copies of the first; several rows about
    it under one name say several things of it. Of prepared audio the names are not known, so nothing is a copy."""
    names: dict[object, set[tuple[str, ...]]] = defaultdict(set)
    keys = []
    for row, held in zip(rows, contents, strict=True):
        keys.append((tuple(held), tuple((clip.start, clip.duration) for clip in row.clips)))
        names[keys[-1]].add(_names(row))
    first: dict[object, int] = {}
    kept, copies = [], {}
    for place, (row, key) in enumerate(zip(rows, keys, strict=True)):
        # Contents are of parts of a file; of copies the whole is the same.
        whole = [hashlib.sha256(root.read(name)).digest() for name in _names(row)] if len(names[key]) > 1 else []
        before = first.setdefault((key, *whole), place)
        if _names(rows[before]) == _names(row):
            kept.append(place)
        else:
            copies[place] = before
    return kept, copies


def _names(row: Row) -> tuple[str, ...]:
    return tuple(clip.path for clip in row.clips if not clip.length)


def held_out(rows: Sequence[Row], contents: Sequence[Sequence[str]]) -> list[bool]:
    """A tenth of the recordings, give or take what chance does."""
    lowest: dict[int, bytes] = {}
    heads = joined(contents)
    for row, held, head in zip(rows, contents, heads, strict=True):
        drawn = min(hashlib.sha256(content.encode()).digest() for content in held or [row.id])
        lowest[head] = min(drawn, lowest.get(head, drawn))
    return [int.from_bytes(lowest[head][:8]) < HELD_OUT * 2**64 for head in heads]
