"""Preparation: recordings of any kind in, checked 16-bit FLAC at the model's rate in tar shards out.

    summary = prepare(config, "clotho", progress)     # tools/prepare_data.py prepare does this

Bad audio is found here, once, and left out with a reason, so that training can decode without care. Rows are
prepared in groups of one shard each; a finished group is done again only when its rows, settings or recordings are
others, so an interrupted run goes on where it stopped. What comes out depends on what goes in and on nothing else: not
on the number of processes, nor on time. (Only ``parts/``, which holds what each shard was made from, has times in it.)
What happens to odd signals is a table in docs/data.md; the reference shifts those that are positive throughout (AF2
data/data.py), which are kept here and scaled by their peak like any other.
"""

import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import batched, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import soundfile

from dali_pipes.flac import flac_samples
from dali_pipes.waves import LENGTH, AudioError, notes_on, read_mono
from megatron_af.config import Config, FrontEndConfig
from megatron_af.cores import usable_cores
from megatron_af.data.rows import Clip, Manifest, Row, RowError, to_json
from megatron_af.data.shards import INDEX, PREPARED, SCHEMA, ShardWriter, record_batch, source_of, write_index
from megatron_af.data.storage import DataRoot, StorageError
from megatron_af.prepare.importers.layout import Recordings
from megatron_af.prepare.importers.made_rows import answered
from megatron_af.prepare.importers.marks import without_marks
from megatron_af.prepare.signals import kept_pcm
from megatron_af.processes import processes
from megatron_af.progress import Progress
from megatron_af.runs.digests import digest_file
from megatron_af.runs.lock import after_others

FORMAT = 2
"""Part of every digest; raised when prepared data changes its form."""
_KINDS = ("json", "arrow")
"""What ``parts/`` holds of a group: what it was made from and what was left out, and its rows for the index."""
ROWS_OF_A_POOL = 100_000
"""After so many rows other processes go on. Before 3.12.6 CPython keeps the name of every file for ever
(python/cpython issue 121780): 90 bytes a recording, and C libraries may keep more."""

_recordings = lru_cache(maxsize=1)(lambda root: Recordings(root, ""))  # knows the folders that many are missing in
type _Entry = dict[str, str | int]  # a line of the report


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything, besides the rows and the recordings, that prepared data follows from."""

    root: str
    source: str
    output: str
    front_end: FrontEndConfig
    channels: str
    max_seconds: float
    rows_per_shard: int

    def digest(self) -> str:
        spec = asdict(self) | {"format": FORMAT}
        del spec["root"]  # moving the data changes nothing
        return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What came of a data set."""

    name: str
    rows: int
    kept: int
    seconds: float
    """Of kept audio."""
    reasons: dict[str, int]
    """Reason -> rows left out for it."""
    report: str
    """Where every row that was left out stands, and every note on one that was kept, relative to the data root."""
    notes: int = 0
    noted: dict[str, int] = field(default_factory=dict)
    """Kind -> notes on recordings of kept rows, such as that the header states another length than what was read."""
    cut: int = 0
    """Clips that are longer than ``max_seconds``, of which only so much was kept."""
    max_seconds: float = 0.0
    sample_rate: int = 0
    """Hz of what was kept."""

    @property
    def bad_fraction(self) -> float:
        return 1 - self.kept / self.rows if self.rows else 0.0


def recipe(config: Config, name: str) -> Recipe:
    """What ``prepare`` will do for a data set.

    Raises:
        ValueError: the data set has no source, or nowhere to go.
    """
    dataset = config.data.datasets.get(name)
    if dataset is None or not dataset.source or dataset.manifest.endswith(".jsonl"):
        raise ValueError(
            f"data.datasets.{name}: preparing needs source (a .jsonl) and manifest (the folder to write); "
            f"got {dataset or 'no such data set'}"
        )
    front_end, longest = config.model.front_end, config.data.prepare.max_seconds
    if not longest:
        hearing = [stage.max_windows for key, stage in config.curriculum.items() if name in config.hears(key)]
        windows = max(hearing, default=30)
        longest = front_end.heard_seconds(windows)
    return Recipe(
        root=config.data.root,
        source=dataset.source,
        output=dataset.manifest,
        front_end=front_end,
        channels=config.data.prepare.channels,
        max_seconds=longest,
        rows_per_shard=config.data.prepare.rows_per_shard,
    )


def prepare(config: Config, name: str, progress: Progress) -> Summary:
    """Prepares a data set into ``data.datasets.NAME.manifest``; goes on with an unfinished one.

    Who prepares the same folder of a disk at the same time is waited for: two would mix what they make of it.

    Raises:
        ValueError, FileNotFoundError: there is nothing to prepare.
    """
    plan, workers = recipe(config, name), config.data.prepare.workers or usable_cores()
    root = DataRoot(plan.root)
    manifest, folder = Manifest(root.fetch(plan.source)), root.local(plan.output)
    with after_others(folder, progress.say) if folder else nullcontext():
        return _prepare(plan, root, manifest, workers, name, progress)


def _prepare(plan: Recipe, root: DataRoot, manifest: Manifest, workers: int, name: str, progress: Progress) -> Summary:
    rows = len(manifest)
    whole = hashlib.sha256(f"{plan.digest()} {digest_file(manifest.path)}".encode()).hexdigest()
    done, index = f"{plan.output}/{PREPARED}", f"{plan.output}/{INDEX}"
    groups = range(-(-rows // plan.rows_per_shard))
    made = _run_groups(plan, manifest, workers, name, progress)
    if not made and (earlier := _as_before(root, done, index, whole)):
        progress.say(f"{name}: already prepared, {earlier['summary']['kept']:,} rows; rows and recordings are the same")
        return Summary(**earlier["summary"])
    bad, notes, seconds, cut = list[_Entry](), list[_Entry](), 0.0, 0
    for group in groups:  # one by one: each knows every recording of its own
        state = json.loads(root.read(_part(plan, group, "json")))
        bad += state["bad"]
        notes += state["notes"]
        seconds, cut = seconds + state["seconds"], cut + state.get("cut", 0)
    with root.writing(index) as file:
        write_index(Path(file.name), _indexed(root, plan, groups))
        digest = digest_file(Path(file.name))  # here it is a file of this machine
    report = f"{plan.output}/report.jsonl"
    root.write(report, "".join(json.dumps(entry) + "\n" for entry in bad + notes).encode())
    summary = Summary(
        name=name,
        rows=rows,
        kept=rows - len(bad),
        seconds=seconds,
        reasons=dict(Counter(str(entry["reason"]) for entry in bad).most_common()),
        report=report,
        notes=len(notes),
        noted=dict(Counter(str(entry.get("kind", LENGTH)) for entry in notes).most_common()),
        cut=cut,
        max_seconds=plan.max_seconds,
        sample_rate=plan.front_end.sample_rate,
    )
    state = {"inputs": whole, "index": digest, "summary": asdict(summary)}
    root.write(done, json.dumps(state, indent=1).encode())
    for folder in ("", "/shards", "/parts"):
        root.sweep(plan.output + folder)
    current = {file for group in groups for file in (_shard(plan, group), *(_part(plan, group, k) for k in _KINDS))}
    for folder in ("shards", "parts"):
        for old in root.names(f"{plan.output}/{folder}"):
            if f"{plan.output}/{folder}/{old}" not in current:  # of an earlier, longer manifest
                root.remove(f"{plan.output}/{folder}/{old}")
    return summary


def _as_before(root: DataRoot, done: str, index: str, inputs: str) -> dict[str, Any]:
    """What was noted when the data set was finished; empty where it was not, of these inputs and with this index."""
    state: dict[str, Any] = json.loads(root.read(done)) if root.exists(done) else {}
    same = state.get("inputs") == inputs and root.exists(index) and state.get("index") == f"sha256:{root.digest(index)}"
    return state if same else {}


def _run_groups(plan: Recipe, manifest: Manifest, workers: int, name: str, progress: Progress) -> int:
    """Prepares all groups; returns how many were not there already."""
    rows, step, finished, bad, made = len(manifest), plan.rows_per_shard, 0, 0, 0
    jobs = ((group, manifest.part(begin, min(rows, begin + step))) for group, begin in enumerate(range(0, rows, step)))
    for some in batched(jobs, max(1, ROWS_OF_A_POOL // step)):
        waiting = iter(some)
        with processes(min(workers, len(some)), "data.prepare.workers") as pool:
            running = {pool.submit(prepare_group, plan, *job) for job in islice(waiting, 2 * workers)}
            while running:
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ready:
                    done, left_out, new = future.result()
                    finished, bad, made = finished + done, bad + left_out, made + new
                running |= {pool.submit(prepare_group, plan, *job) for job in islice(waiting, len(ready))}
                progress.update(f"prepare {name}", finished, rows, f"{bad:,} left out")
    return made


def prepare_group(plan: Recipe, group: int, manifest: Manifest) -> tuple[int, int, bool]:
    """Prepares the rows of one shard, unless they are there already.

    Returns:
        how many rows, how many of them were left out, and whether the shard was written.
    """
    root = DataRoot(plan.root)
    loaded = list(_load_rows(manifest, group * plan.rows_per_shard))
    shard_path = _shard(plan, group)
    if (done := _done(root, plan, group, loaded)) is not None:
        return len(loaded), len(done["bad"]), False
    stamps = {clip.path: root.stamp(clip.path) for clip in _clips(loaded)}
    contents = _contents(root, loaded)  # before they are read: one that is replaced meanwhile is not what is kept
    with root.writing(shard_path) as file:
        with ShardWriter(file) as shard:
            kept, bad, notes = _fill(shard, shard_path, plan, root, loaded)
        file.flush()
        digest = digest_file(Path(file.name))
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        windows = [sum(plan.front_end.windows_of(clip.duration, sys.maxsize) for clip in row.clips) for row in kept]
        writer.write_batch(record_batch(kept, windows))
    root.write(_part(plan, group, "arrow"), sink.getvalue())
    seconds = sum(clip.duration for clip in {clip for row in kept for clip in row.clips})
    state = {
        "inputs": _group_digest(plan, loaded),
        "stamps": stamps,
        "contents": contents,
        "shard": {"stamp": root.stamp(shard_path), "digest": digest},
        "seconds": seconds,
        "bad": bad,
        "notes": notes,
        "cut": sum(clip.duration > plan.max_seconds for clip in set(_clips(loaded))),
    }
    root.write(_part(plan, group, "json"), json.dumps(state).encode())
    return len(loaded), len(bad), True


def _fill(
    shard: ShardWriter, path: str, plan: Recipe, root: DataRoot, loaded: list[tuple[int, Row | RowError]]
) -> tuple[list[Row], list[_Entry], list[_Entry]]:
    """Adds every good row to the shard.

    Returns:
        the rows as they are in it, what was wrong with the others, and notes on those that were kept.
    """
    kept: list[Row] = []
    bad: list[_Entry] = []
    notes: list[_Entry] = []
    written: dict[Clip, Clip] = {}
    for number, row in loaded:
        if isinstance(row, RowError):
            bad.append({"row": number + 1, "id": "", "reason": "bad row", "problem": str(row)})
            continue
        try:
            sounds = [(clip, b"" if clip in written else _encode(plan, root, clip)) for clip in row.clips]
        except (AudioError, StorageError) as error:
            reason = error.reason if isinstance(error, AudioError) else "unreadable"
            bad.append({"row": number + 1, "id": row.id, "reason": reason, "problem": str(error)})
            continue
        for place, (clip, data) in enumerate(sounds):
            if clip not in written:
                suffix = f".{place}.flac" if len(sounds) > 1 else ".flac"
                offset, length = shard.add(f"{number:09d}{suffix}", data)
                seconds = flac_samples(data) / plan.front_end.sample_rate
                digest = hashlib.sha256(data).hexdigest()
                written[clip] = Clip(path=path, duration=seconds, offset=offset, length=length, digest=digest)
                for kind, note in notes_on(source_of(root, clip)).items():
                    notes.append({"row": number + 1, "id": row.id, "kind": kind, "note": f"{clip.path}: {note}"})
        kept.append(replace(row, clips=tuple(written[clip] for clip in row.clips)))
        shard.add(f"{number:09d}.json", to_json(kept[-1]).encode())
    return kept, bad, notes


def _encode(plan: Recipe, root: DataRoot, clip: Clip) -> bytes:
    recording = source_of(root, clip)
    duration = min(clip.duration, plan.max_seconds)
    try:
        wave_T, rate = read_mono(recording, start=clip.start, duration=duration, channels=plan.channels)
        pcm_T = kept_pcm(wave_T, rate, plan.front_end.sample_rate, plan.front_end.level)
    except AudioError as error:
        raise AudioError(f"{clip.path}: {error}{_cure(root, clip, error)}", error.reason) from error
    data = io.BytesIO()
    soundfile.write(data, pcm_T, plan.front_end.sample_rate, format="FLAC", subtype="PCM_16")
    return data.getvalue()


def _cure(root: DataRoot, clip: Clip, error: AudioError) -> str:
    if error.reason == "channels cancel":
        return "; set data.prepare.channels=first"
    return "" if root.exists(clip.path) else _recordings(root).hint(clip.path)


def _load_rows(manifest: Manifest, first: int) -> Iterator[tuple[int, Row | RowError]]:
    """Rows with their numbers in the data set, of which the manifest's first one has ``first``."""
    for place in range(len(manifest)):
        try:
            yield first + place, answered(_unmarked(manifest[place]))
        except RowError as error:
            yield first + place, error


def _unmarked(row: Row) -> Row:
    """As an import would have it, for rows that were written by hand."""
    try:
        return without_marks(row)
    except RowError as error:
        raise RowError(f"{row.id}: {error}") from None


def _group_digest(plan: Recipe, rows: list[tuple[int, Row | RowError]]) -> str:
    """Of what is to be done; what the recordings hold is looked at by `_done`."""
    digest = hashlib.sha256(plan.digest().encode())
    for _, row in rows:
        digest.update(str(row).encode() if isinstance(row, RowError) else to_json(row).encode())
    return digest.hexdigest()


def _clips(rows: list[tuple[int, Row | RowError]]) -> list[Clip]:
    return [clip for _, row in rows if isinstance(row, Row) for clip in row.clips]


def _contents(root: DataRoot, rows: list[tuple[int, Row | RowError]]) -> str:
    """Digest of all recordings of a group: of whole files, and of the parts of tars that are clips."""
    digest = hashlib.sha256()
    for path, offset, length in sorted({(clip.path, clip.offset, clip.length) for clip in _clips(rows)}):
        try:
            digest.update(f"{path} {root.digest(path, offset, length or None)}\n".encode())
        except StorageError:
            digest.update(f"{path} missing\n".encode())
    return digest.hexdigest()


def _done(root: DataRoot, plan: Recipe, group: int, rows: list[tuple[int, Row | RowError]]) -> dict[str, Any] | None:
    """What was noted about a group that is there already, made from the same rows and recordings.

    Recordings whose size and time are the same are not read again.
    """
    files = [_part(plan, group, kind) for kind in _KINDS]
    if not all(root.exists(file) for file in (*files, _shard(plan, group))):
        return None
    state: dict[str, Any] = json.loads(root.read(_part(plan, group, "json")))
    if state["inputs"] != _group_digest(plan, rows) or not _is_as_written(root, _shard(plan, group), state):
        return None
    same = all(root.stamp(path) == stamp for path, stamp in state["stamps"].items())
    return state if same or _contents(root, rows) == state["contents"] else None


def _is_as_written(root: DataRoot, shard: str, state: dict[str, Any]) -> bool:
    """Read only where somebody has touched it: a copy has another time and is the same."""
    written = state.get("shard", {})
    return written.get("stamp") == root.stamp(shard) or written.get("digest") == f"sha256:{root.digest(shard)}"


def _indexed(root: DataRoot, plan: Recipe, groups: range) -> Iterator[pa.RecordBatch]:
    for group in groups:
        yield from pa.ipc.open_stream(root.read(_part(plan, group, "arrow")))


def _shard(plan: Recipe, group: int) -> str:
    return f"{plan.output}/shards/{group:06d}.tar"


def _part(plan: Recipe, group: int, kind: str) -> str:
    return f"{plan.output}/parts/{group:06d}.{kind}"
