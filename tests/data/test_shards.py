"""The columnar index: same rows back, random access, and its cost at ten million rows."""

import hashlib
import random
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from megatron_af.data.rows import Clip, Manifest, Question, Row, RowError, Span, to_json
from megatron_af.data.shards import (
    BATCH_ROWS,
    PreparedRows,
    ShardWriter,
    open_rows,
    record_batch,
    row_durations,
    source_of,
    write_index,
)
from megatron_af.data.storage import DataRoot, StorageError
from megatron_af.foreign import ForeignError


def row(i: int) -> Row:
    return Row(
        id=f"r{i}",
        clips=tuple(
            Clip(path=f"s/{i % 3}.tar", duration=i + 0.5, offset=i, length=i + 1, digest="d") for _ in range(i % 3)
        ),
        questions=(Question(prompt=f"p{i}", output="o", skill="s", options=("a", "b")),),
        captions=("c",) * (i % 2),
        spans=(Span(start=0.5, end=1.0, captions=("d",), negatives=("e", "f")),) * (i % 7 == 0),
        task="t",
        template="dialogue" if i % 5 == 0 else "single",
        meta={"k": i} if i % 4 == 0 else {},
    )


@pytest.mark.parametrize("count", [0, 1, BATCH_ROWS, 3 * BATCH_ROWS + 5, 200 * BATCH_ROWS])
def test_rows_come_back_whatever_batches_they_came_in(tmp_path: Path, count: int) -> None:
    rows = [row(i) for i in range(count)]
    cuts = [0, *(c for c in (1, 7, 200, 201) if c < count), count]
    batches = [record_batch(rows[a:b], [len(r.clips) for r in rows[a:b]]) for a, b in pairwise(cuts)]
    assert write_index(tmp_path / "index.arrow", batches) == count
    read = PreparedRows(tmp_path / "index.arrow")
    assert len(read) == count
    places = range(0, count, max(1, count // 50))
    assert [read[i] for i in places] == [rows[i] for i in places]
    if count:
        assert read[-1] == rows[-1] and read[:2] == rows[:2]
    with pytest.raises(IndexError):
        read[count]


def test_a_recording_is_a_file_or_a_part_of_a_shard_that_holds_what_was_written(tmp_path: Path) -> None:
    root = DataRoot(str(tmp_path))
    (tmp_path / "a.wav").write_bytes(b"sound")
    assert source_of(root, Clip(path="a.wav", duration=1.0)) == tmp_path / "a.wav"
    with (tmp_path / "s.tar").open("wb") as file, ShardWriter(file) as shard:
        shard.add("0.flac", b"first")
        offset, length = shard.add("1.flac", b"second")
    inside = Clip(path="s.tar", duration=1.0, offset=offset, length=length)
    for digest in ("", hashlib.sha256(b"second").hexdigest()):
        assert source_of(root, replace(inside, digest=digest)) == b"second"
    with pytest.raises(StorageError, match=rf"s\.tar holds something else at byte {offset} than when"):
        source_of(root, replace(inside, digest=hashlib.sha256(b"other").hexdigest()))


@pytest.mark.slow
def test_ten_million_rows_open_at_once_in_little_memory(tmp_path: Path) -> None:
    """Ten million rows, as fast as they can be written: one batch of columns, repeated."""
    batch = record_batch([row(i) for i in range(BATCH_ROWS)], [0] * BATCH_ROWS).select(["id", "questions"])
    wide = batch.append_column("fill", pa.nulls(BATCH_ROWS))
    path = tmp_path / "index.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, wide.schema) as writer:
        for _ in range(10_000_000 // BATCH_ROWS):
            writer.write_batch(wide)
    script = (
        "import resource, sys, time, random\n"
        "from pathlib import Path\n"
        "from megatron_af.data.shards import PreparedRows\n"
        "import megatron_af.data.shards as shards\n"
        "import pyarrow as pa\n"
        "shards.row_from_record = lambda record: record\n"
        "shards.SCHEMA = pa.ipc.open_file(sys.argv[1]).schema\n"
        "import psutil\n"
        "before = psutil.Process().memory_info().rss\n"
        "began = time.perf_counter()\n"
        "rows = PreparedRows(Path(sys.argv[1]))\n"
        "opened = time.perf_counter() - began\n"
        "assert len(rows) == 10_000_000 // shards.BATCH_ROWS * shards.BATCH_ROWS\n"
        "for _ in range(3000): rows[random.randrange(len(rows))]\n"
        "print(opened, (psutil.Process().memory_info().rss - before) / 2**20)\n"
    )
    out = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    opened, mebibytes = map(float, out.stdout.split())
    assert opened < 2 and mebibytes < 200


@pytest.mark.parametrize("what", ["cut", "empty", "text", "other columns", *range(40)])
def test_a_damaged_index_is_told_of_or_read(tmp_path: Path, what: str | int) -> None:
    index = tmp_path / "index.arrow"
    rows = [row(i) for i in range(2 * BATCH_ROWS)]
    write_index(index, [record_batch(rows, [len(r.clips) for r in rows])])
    whole = index.read_bytes()
    if what == "other columns":
        with pa.ipc.new_file(index, pa.schema({"id": pa.string()})) as writer:
            writer.write_batch(pa.record_batch({"id": ["r0"]}))
    else:
        damaged = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no index" * 100}
        draw = random.Random(str(what))
        places = [draw.randrange(len(whole)) for _ in range(8)]
        flipped = bytes(byte ^ 0xFF * (place in places) for place, byte in enumerate(whole))
        index.write_bytes(damaged.get(str(what), flipped))
    with (pytest.raises(ForeignError, match=r"index\.arrow: expected the index of a prepared data set.*prepare again")
          if isinstance(what, str) else suppress(ForeignError, RowError)):  # fmt: skip
        found = PreparedRows(index)
        for place in range(len(found)):
            assert isinstance(found[place], Row)
        list(row_durations(found))


def test_missing_data_sets_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"prepared data set.*data\.root"):
        open_rows(DataRoot(str(tmp_path)), "prepared/x")
    with pytest.raises(FileNotFoundError, match=r"data\.datasets"):
        open_rows(DataRoot(str(tmp_path)), "x.jsonl")


def test_durations_are_read_alike_from_an_index_and_a_manifest(tmp_path: Path) -> None:
    seconds = [(2.5,), (), (1.0, 30.0)] * 100
    rows = [
        Row(id=str(i), clips=tuple(Clip(path="x.wav", duration=s) for s in found), captions=("x",))
        for i, found in enumerate(seconds)
    ]
    write_index(tmp_path / "index.arrow", [record_batch(rows, [0] * len(rows))])
    (tmp_path / "rows.jsonl").write_text("".join(f"{to_json(row)}\n" for row in rows) + "{}\n")
    prepared = [tuple(found) for found in row_durations(PreparedRows(tmp_path / "index.arrow"))]
    manifest = [tuple(found) for found in row_durations(Manifest(tmp_path / "rows.jsonl"))]
    assert prepared == seconds and manifest == [*seconds, ()]  # a bad row keeps its place
