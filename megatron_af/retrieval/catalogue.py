"""What of a data set may be shown as an example: rows about one clip, by sound, without anything that is held out.

    catalogue = read_catalogue(config, "clotho")
    catalogue.key_P[catalogue.piece_N[0]]       # what the first such row sounds like, as a digest

A *piece* is one stretch of one recording's bytes; rows about the same piece share an embedding. A *recording* is
everything of one origin: pieces of equal bytes, and, of prepared data, pieces that were cut from one source file. AF1
(foundation/data/prepare_each_dataset.py) goes by file names alone, so copies are each other's neighbours there.
N rows, P pieces.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dali_pipes.waves import AudioError, check_header
from megatron_af.config import Config, ConfigError, DatasetConfig
from megatron_af.data.rows import Clip, Manifest, Row, RowError
from megatron_af.data.shards import open_rows
from megatron_af.data.storage import DataRoot, StorageError


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The rows of a data set that may be examples, in its order."""

    row_N: NDArray[np.int64]
    """Their numbers in the data set."""
    piece_N: NDArray[np.int64]
    key_P: Sequence[str]
    """Digest of each piece: of its recording's bytes, start and duration."""
    audio_P: Sequence[str]
    """Digest of the bytes that the piece is of."""
    recording_P: NDArray[np.int64]
    left_out: dict[str, int]
    """Reason -> rows."""


def read_catalogue(config: Config, dataset: str) -> Catalogue:
    """Raises ``ConfigError`` for a data set that is held out, unknown, or has no row to show."""
    root = DataRoot(config.data.root)
    held_out = held_out_sets(config)
    if dataset in held_out or dataset not in config.data.datasets:
        what = f"curriculum.{held_out[dataset]} is evaluated on it" if dataset in held_out else "not in data.datasets"
        raise ConfigError("cannot be indexed", [f"{dataset}: {what}; name a training split"])
    digest = _Digests(root)
    origins = _Origins()
    barred = {
        name
        for benchmark in held_out
        if benchmark in config.data.datasets
        for _, row, names in _named_rows(root, config.data.datasets[benchmark], digest)
        for name in names
    }
    rows: list[int] = []
    pieces: list[int] = []
    place: dict[str, int] = {}
    audio: list[str] = []
    origin: list[str] = []
    left_out: Counter[str] = Counter()
    for number, row, names in _named_rows(root, config.data.datasets[dataset], digest):
        if reason := _unfit(row):
            left_out[reason] += 1
            continue
        assert row is not None
        clip = row.clips[0]
        key = hashlib.sha256(json.dumps([digest(clip), clip.start, clip.duration]).encode()).hexdigest()
        named = origins.join(names)
        if key not in place:
            place[key] = len(place)
            audio.append(digest(clip))
            origin.append(named)
        rows.append(number)
        pieces.append(place[key])
    # Only now is it known which names belong together.
    shut = {origins.find(name) for name in barred}
    number_of: dict[str, int] = {}
    recordings = [-1 if (o := origins.find(n)) in shut else number_of.setdefault(o, len(number_of)) for n in origin]
    whole = Catalogue(
        row_N=np.array(rows, np.int64),
        piece_N=np.array(pieces, np.int64),
        key_P=list(place),
        audio_P=audio,
        recording_P=np.array(recordings, np.int64),
        left_out=dict(left_out),
    )
    catalogue = _without_held_out(whole)
    if not len(catalogue.row_N):
        why = ", ".join(f"{reason}: {count:,}" for reason, count in catalogue.left_out.items())
        raise ConfigError("nothing to index", [f"{dataset} has no row to show as an example ({why or 'it is empty'})"])
    return catalogue


def held_out_sets(config: Config) -> dict[str, str]:
    """Data sets that some stage is evaluated on -> that stage."""
    return {name: stage for stage, settings in config.curriculum.items() for name in settings.evaluation}


def _without_held_out(whole: Catalogue) -> Catalogue:
    """Recordings that are held out have number -1."""
    kept_P = whole.recording_P >= 0
    kept_N = kept_P[whole.piece_N]
    barred = int((~kept_N).sum())
    chosen = np.flatnonzero(kept_P).tolist()
    return Catalogue(
        row_N=whole.row_N[kept_N],
        piece_N=(np.cumsum(kept_P) - 1)[whole.piece_N[kept_N]],
        key_P=[whole.key_P[piece] for piece in chosen],
        audio_P=[whole.audio_P[piece] for piece in chosen],
        recording_P=whole.recording_P[kept_P],
        left_out=whole.left_out | ({"recording is held out": barred} if barred else {}),
    )


def _unfit(row: Row | None) -> str:
    """Why a row is no example; empty where it is one."""
    if row is None:
        return "cannot be read"
    if row.template != "single" or len(row.clips) != 1:
        return "not about one clip"
    return "" if row.questions else "no question"


def _named_rows(
    root: DataRoot, dataset: DatasetConfig, digest: "_Digests"
) -> Iterator[tuple[int, Row | None, list[str]]]:
    """Number, row (None where it cannot be read), and every name that its recordings go by.

    Of an interleaved row only the last clip is its own; the others are examples.
    """
    rows = open_rows(root, dataset.manifest)
    sources = _source_paths(root, dataset)
    for number in range(len(rows)):
        try:
            row = rows[number]
            clips, paths = row.clips, sources.get(row.id, [])
            if row.template.startswith("interleaved"):
                clips, paths = clips[-1:], paths[-1:]
            for clip in clips:
                if not clip.length and (file := root.local(clip.path)):
                    check_header(file, start=clip.start, duration=clip.duration)
            names = [f"bytes {digest(clip)}" for clip in clips]
        except (RowError, AudioError, StorageError):  # training replaces such a row, too
            yield number, None, []
            continue
        paths = [clip.path for clip in clips if not clip.length] or paths
        yield number, row, names + [f"file {path}" for path in paths]


def _source_paths(root: DataRoot, dataset: DatasetConfig) -> dict[str, list[str]]:
    """Row id -> recordings that its prepared clips were cut from. Rows of equal ids count as of one recording."""
    paths: dict[str, list[str]] = {}
    if dataset.source and not dataset.manifest.endswith(".jsonl") and root.exists(dataset.source):
        for row in Manifest(root.fetch(dataset.source)).each():
            if isinstance(row, Row):
                paths.setdefault(row.id, []).extend(clip.path for clip in row.clips)
    return paths


class _Digests:
    """SHA-256 of a clip's recording, read from the disk where it was not prepared."""

    def __init__(self, root: DataRoot) -> None:
        self._of_file = lru_cache(maxsize=1 << 20)(
            lambda path, offset, length: root.digest(path, offset, length or None)
        )

    def __call__(self, clip: Clip) -> str:
        return clip.digest or str(self._of_file(clip.path, clip.offset, clip.length))


class _Origins:
    """Names that belong to one recording, by union-find."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        while (parent := self._parent.setdefault(name, name)) != name:
            self._parent[name] = self._parent[parent]
            name = parent
        return name

    def join(self, names: Sequence[str]) -> str:
        first = self.find(names[0])
        for name in names[1:]:
            self._parent[self.find(name)] = first
        return first
