"""Parts of a data set's rows, by recording: what trains, what is watched meanwhile, what is measured at the end.

    kept, rows = write_part(config, "test")     # data.datasets.test.part; tools/prepare_data.py import

No two parts that do not overlap share a recording, under whatever names it lies there: recordings are told apart by
what they hold. Each class (``meta.class``) is divided by itself, so that every part has its share of it.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from megatron_af.config import Config
from megatron_af.data.rows import Clip, Manifest, Row, to_json
from megatron_af.data.storage import DataRoot
from megatron_af.runs.recordings import Recordings


def write_part(config: Config, name: str) -> tuple[int, int]:
    """Writes the rows of ``data.datasets.NAME.part`` to the data set's source; returns how many of how many.

    Raises:
        ValueError: what it is a part of has not been imported.
    """
    dataset = config.data.datasets[name]
    assert dataset.part is not None
    whole = config.data.datasets[dataset.part.of]
    root, source = DataRoot(config.data.root), whole.source or whole.manifest
    if not source.endswith(".jsonl") or not root.exists(source):
        raise ValueError(
            f"data.datasets.{name}.part.of = {dataset.part.of}: there are no rows of it in {root}/{source}; import them"
        )
    rows = [row for row in Manifest(root.fetch(source)).each() if isinstance(row, Row)]  # preparation names the others
    places = places_of(rows, contents_of(config.data.root, Path(config.output), rows))
    kept = [row for row, place in zip(rows, places, strict=True) if dataset.part.begin <= place < dataset.part.end]
    with root.writing(dataset.source or dataset.manifest) as file:
        file.writelines(to_json(row).encode() + b"\n" for row in kept)
    return len(kept), len(rows)


def places_of(rows: Sequence[Row], contents: Sequence[Sequence[str]]) -> list[float]:
    """Where each row stands between 0 and 1 among those of its class; rows that share a recording stand together.

    Args:
        contents: what each row's recordings hold, in a word each.
    """
    heads = joined(contents)
    classes: dict[str, list[tuple[bytes, int]]] = defaultdict(list)
    for row, held in enumerate(contents):
        if heads[row] == row:
            drawn = hashlib.sha256("\n".join(sorted(held) or [rows[row].id]).encode()).digest()
            classes[str(rows[row].meta.get("class", ""))].append((drawn, row))
    place = {
        row: (number + 0.5) / len(members)
        for members in classes.values()
        for number, (_, row) in enumerate(sorted(members))
    }
    return [place[head] for head in heads]


def joined(contents: Sequence[Sequence[str]]) -> list[int]:
    """For each row the first one of those that it shares a recording with, directly or through others."""
    first: dict[str, int] = {}
    group = list(range(len(contents)))

    def head(row: int) -> int:
        while group[row] != row:
            row = group[row]
        return row

    for row, held in enumerate(contents):
        for content in held:
            one, other = sorted((head(row), head(first.setdefault(content, row))))
            group[other] = one
    return [head(row) for row in range(len(contents))]


def contents_of(root: str, kept: Path, rows: Sequence[Row]) -> list[list[str]]:
    """What each row's recordings hold, in a word each: their name, where they cannot be read or lie in an object store.

    Args:
        root: ``data.root``.
        kept: folder where what was read of recordings is kept.
    """
    paths = sorted({clip.path for row in rows for clip in row.clips if not clip.length})
    found = zip(paths, Recordings(root, kept).digests(paths), strict=True)
    read = {path: (digest, digest.removeprefix(f"{path} ")) for path, digest in found}
    held = {path: content if " " in content else digest for path, (digest, content) in read.items()}

    def content(clip: Clip) -> str:
        return clip.digest or (f"{clip.path} {clip.offset}" if clip.length else held[clip.path])

    return [sorted({content(clip) for clip in row.clips}) for row in rows]
