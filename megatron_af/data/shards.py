"""Prepared data sets: FLAC recordings in tar shards, and a columnar index of their rows.

    rows = open_rows(DataRoot("data"), "prepared/clotho")      # a sequence of Row, like a Manifest
    with ShardWriter(file) as shard: span = shard.add("000000017.flac", data)
    source = source_of(DataRoot("data"), rows[0].clips[0])      # what decoders read, of a shard or of a file

A shard is a WebDataset: members of one row share the name up to the first dot. It holds nothing that depends on
time, machine or user, so preparing twice gives the same bytes. The index is an Arrow file read by record batch: it
opens at once however long it is, and takes no memory for the rows that are not asked for.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from megatron_af.data.rows import Clip, Manifest, Question, Row, RowError, Span
from megatron_af.data.storage import DataRoot, StorageError
from megatron_af.foreign import ForeignError, file_at

INDEX = "index.arrow"
PREPARED = "prepared.json"
"""What came of preparation, in numbers (``prepare/sharding.py``)."""
BATCH_ROWS = 128
"""Rows that are read together from the index."""
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "task": pa.string(),
        "template": pa.string(),
        "clips": pa.list_(
            pa.struct(
                {
                    "path": pa.string(),
                    "start": pa.float64(),
                    "duration": pa.float64(),
                    "offset": pa.int64(),
                    "length": pa.int64(),
                    "digest": pa.string(),
                }
            )
        ),
        "windows": pa.int32(),
        "questions": pa.list_(
            pa.struct(
                {
                    "prompt": pa.string(),
                    "output": pa.string(),
                    "skill": pa.string(),
                    "options": pa.list_(pa.string()),
                }
            )
        ),
        "captions": pa.list_(pa.string()),
        "negatives": pa.list_(pa.string()),
        "spans": pa.list_(
            pa.struct(
                {
                    "start": pa.float64(),
                    "end": pa.float64(),
                    "captions": pa.list_(pa.string()),
                    "negatives": pa.list_(pa.string()),
                }
            )
        ),
        "meta": pa.string(),
    }
)


class ShardWriter:
    """A tar archive whose bytes depend on nothing but what is added."""

    def __init__(self, file: IO[bytes]) -> None:
        self._tar = tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._tar.close()

    def add(self, name: str, data: bytes) -> tuple[int, int]:
        """Appends a member; returns the offset and length of its content."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        offset = self._tar.offset + tarfile.BLOCKSIZE  # a ustar header of a short name is one block
        self._tar.addfile(info, io.BytesIO(data))
        return offset, len(data)


class PreparedRows(Sequence[Row]):
    """The rows of an index file."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            FileNotFoundError: there is none.
            ForeignError: it is damaged, or of another form.
        """
        self.path = path
        with _told(path):
            # Not memory-mapped: pages once touched would stay.
            self._reader = pa.ipc.open_file(pa.OSFile(str(file_at(path))))
            if not self._reader.schema.equals(SCHEMA):
                raise pa.ArrowInvalid("its columns are others")
            batches = self._reader.num_record_batches
            self._last = self._reader.get_batch(batches - 1) if batches else None
        self._length = 0 if self._last is None else (batches - 1) * BATCH_ROWS + self._last.num_rows
        self._batch: tuple[int, pa.RecordBatch] | None = None

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} rows; asked for {index}")
        number, place = divmod(index % len(self), BATCH_ROWS)
        if self._batch is None or self._batch[0] != number:
            with _told(self.path):
                batch = self._reader.get_batch(number)
                batch.validate(full=True)  # places that lie outside of it would be read
            self._batch = number, batch
        with _told(self.path):
            return row_from_record(self._batch[1].slice(place, 1).to_pylist()[0])


def rows_file(manifest: str) -> str:
    """The file with the rows of a manifest: itself, or the index of a prepared data set."""
    return manifest if manifest.endswith(".jsonl") else f"{manifest}/{INDEX}"


def open_rows(root: DataRoot, manifest: str) -> Sequence[Row]:
    """The rows of a manifest: a JSON Lines file, or the folder of a prepared data set.

    Raises:
        FileNotFoundError: there is neither.
        ForeignError: an index is damaged, or of another form.
    """
    try:
        file = root.fetch(rows_file(manifest))
        return Manifest(file) if manifest.endswith(".jsonl") else PreparedRows(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{root}/{manifest} is neither a manifest (.jsonl) nor a prepared data set (a folder with {INDEX}): "
            "check data.root and data.datasets.*.manifest, or run tools/prepare_data.py prepare"
        ) from error


def source_of(root: DataRoot, clip: Clip) -> Path | bytes:
    """The recording's bytes where it is in a shard or far away, else its path: then only the clip need be read.

    Rows that were made of prepared ones (examples, choices, copies, results) know a place in a shard, where something
    else may lie after the next preparation.

    Raises:
        StorageError: it cannot be read, or is not what the row was written about.
    """
    if not clip.length:
        return root.local(clip.path) or root.read(clip.path)
    data = root.read(clip.path, clip.offset, clip.length)
    if clip.digest and hashlib.sha256(data).hexdigest() != clip.digest:
        raise StorageError(
            f"{clip.path} holds something else at byte {clip.offset} than when the row was written: it was prepared "
            "again, or damaged; prepare it, and make the rows anew that were made of it"
        )
    return data


def longest_clips(root: DataRoot, manifest: str) -> int:
    """Clips of the row that has the most; one pass over the data set. Raises what :func:`open_rows` raises."""
    rows = open_rows(root, manifest)
    if not isinstance(rows, PreparedRows):
        return max((len(row.clips) for row in rows), default=0)
    return max((pc.max(pc.list_value_length(clips)).as_py() or 0 for clips in _clips(rows)), default=0)


def row_durations(rows: Sequence[Row]) -> Iterator[NDArray[np.float64]]:
    """Seconds of each row's clips, row by row; one pass over the data set. A row that cannot be read has none."""
    if isinstance(rows, PreparedRows):
        for clips in _clips(rows):
            seconds = clips.flatten().field("duration").to_numpy(zero_copy_only=False)
            yield from np.split(seconds, np.cumsum(pc.list_value_length(clips).to_numpy(zero_copy_only=False))[:-1])
        return
    for place in range(len(rows)):
        try:
            yield np.array([clip.duration for clip in rows[place].clips])
        except RowError:  # told where it is drawn
            yield np.zeros(0)


def _clips(rows: PreparedRows) -> Iterator[pa.ListArray]:
    """The column of clips alone, by record batch."""
    only_clips = pa.ipc.IpcReadOptions(included_fields=[SCHEMA.get_field_index("clips")])
    with _told(rows.path):
        reader = pa.ipc.open_file(pa.OSFile(str(file_at(rows.path))), options=only_clips)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number).column(0)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say of an index that cannot be read which one it is, and the cure."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, TypeError, RecursionError) as error:
        if getattr(error, "errno", None) or isinstance(error, ForeignError):  # the system's, not the reader's
            raise
        reason = " ".join(str(error).split())[:200]
        raise ForeignError(
            f"{path}: expected the index of a prepared data set ({reason}); run tools/prepare_data.py prepare again"
        ) from None


def write_index(path: Path, batches: Iterable[pa.RecordBatch]) -> int:
    """Writes rows into record batches of one size, as `PreparedRows` expects; returns their number."""
    total = 0
    waiting: list[pa.RecordBatch] = []
    have = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:

        def flush(whole: bool) -> None:
            nonlocal waiting, have
            table = pa.Table.from_batches(waiting, SCHEMA).combine_chunks()
            end = have if whole else have - have % BATCH_ROWS
            for begin in range(0, end, BATCH_ROWS):
                for batch in table.slice(begin, min(BATCH_ROWS, end - begin)).to_batches():
                    writer.write_batch(batch)
            waiting, have = table.slice(end).to_batches(), have - end

        for batch in batches:
            waiting.append(batch)
            have += batch.num_rows
            total += batch.num_rows
            if have >= 64 * BATCH_ROWS:
                flush(whole=False)
        if have:
            flush(whole=True)
    return total


def record_batch(rows: Sequence[Row], windows: Sequence[int]) -> pa.RecordBatch:
    """Rows as columns."""
    records = [
        asdict(row) | {"meta": json.dumps(dict(row.meta), sort_keys=True) if row.meta else "", "windows": n}
        for row, n in zip(rows, windows, strict=True)
    ]
    return pa.RecordBatch.from_pylist(records, schema=SCHEMA)


def row_from_record(record: dict) -> Row:  # type: ignore[type-arg]
    """The inverse of `record_batch` for one row."""
    return Row(
        id=record["id"],
        clips=tuple(Clip(**clip) for clip in record["clips"]),
        questions=tuple(
            Question(prompt=q["prompt"], output=q["output"], skill=q["skill"], options=tuple(q["options"]))
            for q in record["questions"]
        ),
        captions=tuple(record["captions"]),
        negatives=tuple(record["negatives"]),
        spans=tuple(
            Span(start=s["start"], end=s["end"], captions=tuple(s["captions"]), negatives=tuple(s["negatives"]))
            for s in record["spans"]
        ),
        task=record["task"],
        template=record["template"],
        meta=json.loads(record["meta"]) if record["meta"] else {},
    )
