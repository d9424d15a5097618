"""Preparation: every kind of damage is found and named, and the same input gives the same bytes."""

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import soundfile
import torch

from megatron_af.config import (
    Config,
    DataConfig,
    DatasetConfig,
    ImportConfig,
    ModelConfig,
    PrepareConfig,
    StageConfig,
)
from megatron_af.data.clips import ClipLoader
from megatron_af.data.rows import Clip, Manifest, Question, Row, to_json
from megatron_af.data.shards import open_rows, row_from_record
from megatron_af.data.storage import DataRoot, StorageError
from megatron_af.prepare import sharding
from megatron_af.prepare.importers import import_dataset
from megatron_af.prepare.sharding import Summary, prepare, prepare_group, recipe
from megatron_af.progress import Progress, silent
from megatron_af.runs.lock import StageLock
from tests.data.toy import CPU, FRONT_END, open_stream, toy_rows, write_manifest
from tests.text.toy_tokenizer import toy_base
from tests.told import Told

pytestmark = pytest.mark.slow

RATE = 22_050


def noise(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype(np.float32)


def config(folder: Path, **changes: object) -> Config:
    settings = {"rows_per_shard": 4, "workers": 1, "max_bad_fraction": 1.0} | changes
    data = DataConfig(
        root=str(folder / "data"),
        tokenizer=str(folder / "data" / "tokenizer.json"),
        datasets={"a": DatasetConfig(manifest="prepared/a", source="a.jsonl")},
        prepare=PrepareConfig(**settings),  # type: ignore[arg-type]
    )
    stage = StageConfig(blend={"a": 1.0}, max_windows=3, global_batch_samples=4, micro_batch_samples=4)
    return Config(
        name="p",
        precision="fp32",
        output=str(folder / "runs"),
        model=ModelConfig(front_end=FRONT_END),
        data=data,
        curriculum={"tune": stage},
        stage="tune",
    )


def row(name: str, path: str, duration: float = 1.0, start: float = 0.0) -> Row:
    return Row(
        id=name,
        clips=(Clip(path=path, duration=duration, start=start),),
        questions=(Question(prompt="what?", output=name, options=(name, "another")),),
        captions=("one", "two"),
        meta={"n": 1},
    )


def run(c: Config) -> Summary:
    return prepare(c, "a", silent())


def tree(folder: Path) -> dict[str, str]:
    """All that training may read."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.parent.name != "parts"
    }


def test_every_kind_of_damage_has_its_outcome(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    soundfile.write(root / "good.wav", np.stack([noise(2.0), noise(2.0)], 1), RATE)
    soundfile.write(root / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(root / "constant.wav", np.full(RATE, 0.3), RATE)
    soundfile.write(root / "positive.wav", np.abs(noise(1.0)) + 0.2, RATE, subtype="FLOAT")
    bad = noise(1.0)
    bad[7] = np.inf
    soundfile.write(root / "infinite.wav", bad, RATE, subtype="FLOAT")
    soundfile.write(root / "whole.flac", noise(3.0), RATE)
    (root / "cut.flac").write_bytes((root / "whole.flac").read_bytes()[:30_000])
    soundfile.write(root / "whole.wav", noise(3.0), RATE)
    (root / "cut.wav").write_bytes((root / "whole.wav").read_bytes()[:-2000])  # 45 ms of what its header promises
    soundfile.write(root / "blip.wav", noise(0.005), RATE)
    (root / "text.mp3").write_text("not audio")
    rows = [
        row("good", "good.wav", 2.0),
        row("piece", "good.wav", 0.5, 1.25),
        row("silent", "silent.wav"),
        row("constant", "constant.wav"),
        row("positive", "positive.wav"),
        row("infinite", "infinite.wav"),
        row("cut", "cut.flac", 3.0),
        row("clipped", "cut.wav", 3.0),
        row("before the cut", "cut.wav", 1.0, 1.0),
        row("short", "good.wav", 5.0),
        row("behind", "good.wav", 1.0, 7.0),
        row("blip", "blip.wav", 0.005),
        row("text", "text.mp3"),
        row("missing", "missing.wav"),
        Row(id="words", questions=(Question(prompt="2+2", output="4"),)),
    ]
    lines = [to_json(r) for r in rows]
    lines.insert(3, '{"id": "broken"')
    (root / "a.jsonl").write_text("\n".join(lines))
    summary = run(config(tmp_path))
    assert (summary.rows, summary.kept) == (16, 5)
    assert summary.reasons == {
        "bad row": 1, "silent": 2, "not finite": 1, "truncated": 3, "behind the end": 1, "empty": 1, "unreadable": 2,
    }  # fmt: skip
    report = [json.loads(line) for line in (root / summary.report).read_text().splitlines()]
    assert {e["id"]: e["reason"] for e in report}["cut"] == "truncated"
    assert all(".wav" in e["problem"] or ".flac" in e["problem"] or ".mp3" in e["problem"] for e in report if e["id"])
    assert next(e for e in report if e["reason"] == "bad row")["row"] == 4
    kept = open_rows(DataRoot(str(root)), "prepared/a")
    assert [r.id for r in kept] == ["good", "piece", "positive", "before the cut", "words"]
    good = kept[0]
    assert replace(good, clips=()) == replace(rows[0], clips=())
    clip = good.clips[0]
    assert abs(clip.duration - 2.0) < 1e-3 and clip.start == 0
    data = DataRoot(str(root)).read(clip.path, clip.offset, clip.length)
    assert hashlib.sha256(data).hexdigest() == clip.digest
    import io

    wave, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate == 16_000 and np.abs(wave).max() == 32_767
    assert abs(kept[1].clips[0].duration - 0.5) < 1e-3


def test_a_tenth_of_damaged_recordings_is_named_and_the_rest_keeps_its_order(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    rows = []
    for number in range(40):
        soundfile.write(root / f"{number}.wav", noise(1.0, seed=number), RATE)
        rows.append(row(f"r{number}", f"{number}.wav"))
    write_manifest(root, "a", rows)
    for number, damaged in ((3, b""), (4, b"not audio"), (17, (root / "17.wav").read_bytes()[:300])):
        (root / f"{number}.wav").write_bytes(damaged)
    (root / "39.wav").unlink()
    summary = run(config(tmp_path, workers=2))
    assert (summary.rows, summary.kept) == (40, 36)
    report = [json.loads(line) for line in (root / summary.report).read_text().splitlines()]
    assert [entry["id"] for entry in report] == ["r3", "r4", "r17", "r39"]
    kept = open_rows(DataRoot(str(root)), "prepared/a")
    assert [kept[i].id for i in range(36)] == [f"r{i}" for i in range(40) if i not in (3, 4, 17, 39)]


def test_odd_headers_and_channels_have_their_sentence(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    soundfile.write(root / "a.wav", noise(1.0), RATE, subtype="PCM_16")
    crashed = bytearray((root / "a.wav").read_bytes())
    crashed[4:8] = crashed[40:44] = bytes(4)
    (root / "crashed.wav").write_bytes(crashed)
    soundfile.write(root / "opposite.wav", np.stack([noise(1.0), -noise(1.0)], 1), RATE)
    rows = [row("crashed", "crashed.wav"), row("opposite", "opposite.wav"), row("good", "a.wav")]
    (root / "a.jsonl").write_text("\n".join(map(to_json, rows)))
    summary = run(config(tmp_path))
    assert summary.reasons == {"channels cancel": 1} and summary.notes == 1 and summary.kept == 2
    opposite, crashed_entry = [json.loads(line) for line in (root / summary.report).read_text().splitlines()]
    assert opposite["problem"].endswith("set data.prepare.channels=first")
    assert crashed_entry["note"].startswith("crashed.wav: its header states 0 bytes")
    kept = list(open_rows(DataRoot(str(root)), "prepared/a"))
    assert abs(kept[0].clips[0].duration - 1.0) < 1e-3 and kept[0].clips[0].digest == kept[1].clips[0].digest
    assert run(config(tmp_path, channels="first")).kept == 3


def test_rows_written_by_hand_have_their_sentence(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    soundfile.write(root / "a.wav", noise(1.0), RATE)
    soundfile.write(root / "none.wav", np.zeros(0), RATE)
    (root / "circle.wav").symlink_to("circle.wav")
    asked = row("lost answer", "a.wav")
    asked = replace(asked, questions=(Question(prompt="?", output="hail", options=("rain", "wind")),))
    rows = [
        asked,
        replace(asked, id="letter", questions=(Question(prompt="?", output="B", options=("rain", "wind")),)),
        row("case", "A.WAV"),
        row("backslash", "x\\a.wav"),
        row("no samples", "none.wav"),
        row("circle", "circle.wav"),
        row("link", "broken.wav"),
    ]
    (root / "broken.wav").symlink_to("nowhere.wav")
    (root / "a.jsonl").write_text("\n".join(map(to_json, rows)))
    summary = run(config(tmp_path))
    report = [json.loads(line) for line in (root / summary.report).read_text().splitlines()]
    said = {entry["id"] or entry["problem"].split(": ")[0]: (entry["reason"], entry["problem"]) for entry in report}
    assert [r.id for r in open_rows(DataRoot(str(root)), "prepared/a")] == ["letter"]
    assert said["lost answer"][0] == "bad row" and "none of its options" in said["lost answer"][1]
    assert said["case"][1].endswith("it does not exist; 'a.wav' is there")
    assert "not by a backslash" in said["backslash"][1]
    assert said["no samples"][0] == "empty"
    assert "is empty" not in said["circle"][1] and "links" in said["circle"][1]
    assert said["link"][1].endswith("it is a link that leads nowhere")


def test_shards_are_web_datasets_and_do_not_depend_on_workers_or_time(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        folder = tmp_path / name
        write_manifest(folder / "data", "a", toy_rows(folder / "data", "a", 10))
        assert run(config(folder, workers=workers)).kept == 10
        time.sleep(0.05)
    one, two = (tree(tmp_path / n / "data" / "prepared") for n in ("one", "two"))
    assert one == two and len([n for n in one if n.endswith(".tar")]) == 3
    with tarfile.open(tmp_path / "one/data/prepared/a/shards/000000.tar") as tar:
        names = tar.getnames()
    assert names == [
        "000000000.flac", "000000000.json", "000000001.flac", "000000001.json",
        "000000002.0.flac", "000000002.1.flac", "000000002.json", "000000003.json",
    ]  # fmt: skip


def test_shards_are_imported_with_the_recordings_that_their_rows_share(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in "xy":
        soundfile.write(folder / f"{name}.wav", noise(1.0), RATE)
    first, second = (row(name, f"{name}.wav") for name in "xy")
    both = replace(first, id="both", clips=(*second.clips, *first.clips))
    text = replace(first, id="text", clips=())
    write_manifest(folder, "a", [first, replace(first, id="again"), second, both, text])
    c = config(tmp_path, rows_per_shard=8)
    run(c)
    prepared = list(open_rows(DataRoot(str(folder)), "prepared/a"))
    (folder / "prepared/a/shards").rename(folder / "elsewhere")
    origin = ImportConfig(format="webdataset", path="elsewhere/*.tar")
    datasets = {"b": DatasetConfig(origin=origin, manifest="b.jsonl")}
    assert not import_dataset(replace(c, data=replace(c.data, datasets=datasets)), "b", silent()).left_out
    rows = list(Manifest(folder / "b.jsonl"))
    moved = [replace(r, clips=tuple(replace(x, path="elsewhere/000000.tar") for x in r.clips)) for r in prepared]
    assert rows == moved and [len(r.clips) for r in rows] == [1, 1, 1, 2, 0]
    assert not ClipLoader(c, max_windows=3, device=CPU).load([clip for r in rows for clip in r.clips])[1]


class Workers(Progress):
    """Processes that work while a preparation tells how far it is."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[set[int]] = []

    def update(self, *told: Any) -> None:
        self.seen.append({pid for child in multiprocessing.active_children() if (pid := child.pid)})


def test_workers_are_renewed_and_nobody_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(tmp_path / "data", "a", toy_rows(tmp_path / "data", "a", 10))
    prepare(config(tmp_path, workers=2), "a", silent())
    expected, workers = tree(tmp_path / "data/prepared"), Workers()
    shutil.rmtree(tmp_path / "data/prepared")
    monkeypatch.setattr(sharding, "ROWS_OF_A_POOL", 8)
    assert prepare(config(tmp_path, workers=2), "a", workers).kept == 10
    assert tree(tmp_path / "data/prepared") == expected
    assert workers.seen[0] and not workers.seen[0] & workers.seen[-1], "two shards of four rows, then the third"


KILLED = """
import multiprocessing, os, pickle, signal, sys

if __name__ == "__main__":
    from megatron_af.prepare.sharding import prepare
    from megatron_af.progress import Progress

    class Death(Progress):
        def update(self, *told):
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    prepare(pickle.load(open(sys.argv[1], "rb")), "a", Death())
"""


def runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_killed_preparation_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    """Killed when the first of twelve shards is finished, with two workers at work on others."""
    folder = tmp_path / "data"
    write_manifest(folder, "a", toy_rows(folder, "a", 24))
    (tmp_path / "killed.py").write_text(KILLED)
    (tmp_path / "config").write_bytes(pickle.dumps(config(tmp_path, rows_per_shard=2, workers=2)))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "killed.py"), str(tmp_path / "config")]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    deadline = time.monotonic() + 60
    while any(runs(int(pid)) for pid in killed.stdout.split()):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)
    shards = sorted((folder / "prepared/a/shards").glob("*.tar"))
    assert 1 <= len(shards) < 12
    (folder / "prepared/a/shards/.000011.tar.killed.part").write_bytes(b"half")
    before = {p: p.stat().st_mtime_ns for p in (folder / "prepared/a/shards").glob("*.tar")}
    done = [p for p in before if (folder / f"prepared/a/parts/{p.stem}.json").exists()]
    assert run(config(tmp_path, rows_per_shard=2)).kept == 24
    assert done and all(p.stat().st_mtime_ns == before[p] for p in done)
    again = tmp_path / "again"
    write_manifest(again / "data", "a", toy_rows(again / "data", "a", 24))
    run(config(again, rows_per_shard=2))
    assert tree(folder / "prepared") == tree(again / "data" / "prepared")


def test_prepared_again_only_when_something_changed(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    rows = toy_rows(folder, "a", 6)
    write_manifest(folder, "a", rows)
    c = config(tmp_path)
    first = run(c)
    told = Told()
    assert prepare(c, "a", told) == first and "already prepared" in told.lines[-1]
    write_manifest(folder, "a", [*rows[:-1], replace(rows[-1], id="changed")])
    run(c)
    assert open_rows(DataRoot(str(folder)), "prepared/a")[5].id == "changed"
    write_manifest(folder, "a", rows[:3])
    assert run(c).kept == 3
    assert [p.name for p in (folder / "prepared/a/shards").iterdir()] == ["000000.tar"]
    assert sorted(p.name for p in (folder / "prepared/a/parts").iterdir()) == ["000000.arrow", "000000.json"]


def test_a_second_preparation_waits_for_the_first(tmp_path: Path) -> None:
    """Two at once, of other settings each, would leave shards of both."""
    folder = tmp_path / "data"
    write_manifest(folder, "a", toy_rows(folder, "a", 4))
    told = Told()
    with ThreadPoolExecutor(1) as thread:
        with StageLock(folder / "prepared/a"):
            second = thread.submit(prepare, config(tmp_path), "a", told)
            while not told.lines:
                assert not second.done()
                time.sleep(0.01)
            time.sleep(0.5)
            assert [p.name for p in (folder / "prepared/a").iterdir()] == ["writer.json"]
        assert second.result().kept == 4
    assert told.lines[0].endswith(": waiting for it")
    assert not (folder / "prepared/a/writer.json").exists()


def test_what_was_prepared_and_is_damaged_is_prepared_again(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_manifest(folder, "a", toy_rows(folder, "a", 6))
    c = config(tmp_path)
    run(c)
    expected = tree(folder / "prepared")
    shard, index = folder / "prepared/a/shards/000000.tar", folder / "prepared/a/index.arrow"
    flipped = bytearray(shard.read_bytes())
    flipped[len(flipped) // 3] ^= 1
    cases = [(shard, bytes(flipped)), (shard, bytes(flipped[:-512])), (index, b""), (index, index.read_bytes()[:-9])]
    for file, damaged in cases:
        file.write_bytes(damaged)
        run(c)
        assert tree(folder / "prepared") == expected
    os.utime(shard)  # a copy
    told = Told()
    prepare(c, "a", told)
    assert "already prepared" in told.lines[-1] and tree(folder / "prepared") == expected


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_recordings_replaced_under_the_same_name_are_prepared_again(tmp_path: Path, scheme: str) -> None:
    """Of the same size, too; what was only touched is not. Alone the shards that hold them are made again."""
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(8):
        soundfile.write(folder / f"{i}.wav", noise(1.0, seed=i), RATE)
    (folder / "a.jsonl").write_text("\n".join(to_json(row(str(i), f"{i}.wav")) for i in range(8)))
    c = config(tmp_path)
    c = replace(c, data=replace(c.data, root=f"{scheme}{folder}"))
    run(c)
    digests = [r.clips[0].digest for r in open_rows(DataRoot(str(folder)), "prepared/a")]
    kept = (folder / "prepared/a/shards/000000.tar").stat().st_mtime_ns
    (folder / "5.wav").touch()
    told = Told()
    prepare(c, "a", told)
    assert "already prepared" in told.lines[-1]
    other = noise(1.0, seed=5)
    other[-100:] = 0.05  # the size, the beginning and the middle are what they were
    soundfile.write(folder / "5.wav", other, RATE)
    run(c)
    now = [r.clips[0].digest for r in open_rows(DataRoot(str(folder)), "prepared/a")]
    assert [i for i in range(8) if now[i] != digests[i]] == [5]
    assert (folder / "prepared/a/shards/000000.tar").stat().st_mtime_ns == kept
    (folder / "6.wav").unlink()
    assert run(c).reasons == {"unreadable": 1}


def test_a_recording_replaced_while_it_is_prepared_is_prepared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    soundfile.write(folder / "x.wav", noise(1.0), RATE)
    write_manifest(folder, "a", [row("x", "x.wav")])
    plan, rows = recipe(config(tmp_path), "a"), Manifest(folder / "a.jsonl")
    encode = sharding._encode

    def and_replace(*arguments: Any) -> bytes:
        data = encode(*arguments)
        soundfile.write(folder / "x.wav", noise(1.0, seed=1), RATE)
        return data

    monkeypatch.setattr(sharding, "_encode", and_replace)
    assert prepare_group(plan, 0, rows)[2]
    monkeypatch.setattr(sharding, "_encode", encode)
    assert prepare_group(plan, 0, rows)[2], "the shard holds what was there before"
    assert not prepare_group(plan, 0, rows)[2]


def test_clips_are_cut_to_what_the_longest_stage_uses(tmp_path: Path) -> None:
    c = config(tmp_path)
    assert recipe(c, "a").max_seconds == 3.0
    (tmp_path / "data").mkdir()
    soundfile.write(tmp_path / "data/long.wav", noise(4.0), RATE)
    rows = [row("long.wav", "long.wav", 4.0), row("again", "long.wav", 4.0), row("short", "long.wav", 1.0)]
    (tmp_path / "data/a.jsonl").write_text("".join(to_json(r) + "\n" for r in rows))
    summary = run(c)
    assert (summary.cut, summary.max_seconds, summary.sample_rate) == (1, 3.0, 16_000) and summary.seconds == 4.0
    longer = StageConfig(blend={"a": 1.0}, max_windows=12)
    assert recipe(replace(c, curriculum={**c.curriculum, "long": longer}), "a").max_seconds == 12.0
    measured = StageConfig(blend={"b": 1.0}, evaluation=("a",), max_windows=40)  # beyond what is usual
    assert recipe(replace(c, curriculum={**c.curriculum, "long": measured}), "a").max_seconds == 40.0
    with pytest.raises(ValueError, match=r"data.datasets.b.*no such data set"):
        recipe(c, "b")


def test_prepared_data_trains_like_the_recordings(tmp_path: Path) -> None:
    """Recordings that are mono at the model's rate: same samples, same text, nearly the same mel."""
    folder = tmp_path / "data"
    write_manifest(folder, "a", toy_rows(folder, "a", 10))
    toy_base().save(str(folder / "tokenizer.json"))
    c = config(tmp_path)
    run(c)
    plain = replace(c, data=replace(c.data, datasets={"a": DatasetConfig(manifest="a.jsonl")}))
    streams = [open_stream(x) for x in (c, plain)]
    for step in range(3):
        prepared, recorded = (s.batch(step) for s in streams)
        assert prepared.sample_ids == recorded.sample_ids and prepared.audio.clip_windows == recorded.audio.clip_windows
        assert prepared.text.rows[0].ids_BS.equal(recorded.text.rows[0].ids_BS)
        if prepared.audio.mel_WFM is not None and recorded.audio.mel_WFM is not None:
            loud = recorded.audio.mel_WFM > -50
            assert (prepared.audio.mel_WFM - recorded.audio.mel_WFM)[loud].abs().max() < 0.1
    for s in streams:
        s.close()


@pytest.mark.parametrize("level", ["peak", "recorded"])
def test_prepared_clips_have_the_level_that_the_model_hears(tmp_path: Path, level: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    soundfile.write(folder / "quiet.wav", noise(1.0, 16_000) * np.float32(0.1), 16_000, subtype="FLOAT")
    raw = row("quiet", "quiet.wav")
    write_manifest(folder, "a", [raw])
    c = config(tmp_path)
    c = replace(c, model=ModelConfig(front_end=replace(FRONT_END, level=level)))
    run(c)
    prepared = open_rows(DataRoot(str(folder)), "prepared/a")[0]
    loader = ClipLoader(c, max_windows=3, device=CPU)
    expected, found = (loader.load(r.clips)[0] for r in (raw, prepared))
    assert (expected - found).abs().mean() < 0.1, "a live model hears a microphone as it is"


def test_shards_that_rot_silence_their_own_clip_only(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_manifest(folder, "a", [r for r in toy_rows(folder, "a", 10) if len(r.clips) == 1])
    c = config(tmp_path, rows_per_shard=16)
    prepare_group(recipe(c, "a"), 0, Manifest(folder / "a.jsonl"))
    table = pa.ipc.open_stream((folder / "prepared/a/parts/000000.arrow").read_bytes()).read_all()
    clips = [row_from_record(record).clips[0] for record in table.to_pylist()]
    loader = ClipLoader(c, max_windows=3, device=CPU)
    windows = [loader.num_windows(clip) for clip in clips]
    whole, bad = loader.load(clips)
    assert not bad and len(clips) > 3
    shard, rotten = folder / clips[1].path, clips[1]
    data = bytearray(shard.read_bytes())
    data[rotten.offset + rotten.length // 2 : rotten.offset + rotten.length] = bytes(-(-rotten.length // 2))
    shard.write_bytes(data)
    taken = replace(rotten, digest=hashlib.sha256(data[rotten.offset : rotten.offset + rotten.length]).hexdigest())
    for again, why in ((rotten, "holds something else at byte"), (taken, "cannot be decoded")):  # the pipeline survives
        mel_WFM, bad = loader.load([clips[0], again, *clips[2:]])
        assert list(bad) == [1] and why in bad[1]
        for i, (got, expected) in enumerate(zip(mel_WFM.split(windows), whole.split(windows), strict=True)):
            assert torch.allclose(got, torch.full_like(got, -100.0)) if i == 1 else torch.equal(got, expected)
    shard.write_bytes(data[: rotten.offset + 100])
    assert set(loader.load(clips)[1]) == set(range(1, len(clips)))


def test_rows_made_of_prepared_ones_never_hear_what_lies_there_later(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    rows = [row(str(n), f"{n}.wav") for n in range(4)]
    for n in range(4):
        folder.mkdir(exist_ok=True)
        soundfile.write(folder / f"{n}.wav", noise(1.0, seed=n) * np.float32(1 - n / 8), RATE)
    write_manifest(folder, "a", rows[1:])
    c = config(tmp_path)
    run(c)
    before = [found.clips[0] for found in open_rows(DataRoot(str(folder)), "prepared/a")]
    write_manifest(folder, "a", rows)
    run(c)
    loader = ClipLoader(c, max_windows=3, device=CPU)
    for clip in before:
        _, bad = loader.load([clip])
        assert "it was prepared again" in bad[0], "another recording is heard under this one's name"
        with pytest.raises(StorageError, match="make the rows anew"):
            loader.wave(clip)
    assert not loader.load([found.clips[0] for found in open_rows(DataRoot(str(folder)), "prepared/a")])[1]


def test_object_stores_work_through_fsspec(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_manifest(folder, "a", toy_rows(folder, "a", 5))
    toy_base().save(str(folder / "tokenizer.json"))
    c = config(tmp_path)
    c = replace(c, data=replace(c.data, root=f"file://{folder}"))
    assert run(c).kept == 5
    stream = open_stream(c)
    assert len(stream.batch(0).sample_ids) == 4
    stream.close()


def test_one_group_can_be_prepared_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_manifest(folder, "a", toy_rows(folder, "a", 6))
    plan = recipe(config(tmp_path), "a")
    assert prepare_group(plan, 1, Manifest(folder / "a.jsonl").part(4, 6)) == (2, 0, True)
    assert sorted(p.name for p in (folder / "prepared/a").rglob("*.*")) == ["000001.arrow", "000001.json", "000001.tar"]


def test_marks_of_recordings_in_rows_written_by_hand_are_no_text(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    soundfile.write(root / "a.wav", noise(1.0), RATE)
    asked = {"mark": "<sound>\nwhat is it?", "two": "<sound> or <sound>?", "plain": "what <b>is</b> it?"}
    rows = [
        replace(row(key, "a.wav"), questions=(Question(prompt=prompt, output="rain"),)) for key, prompt in asked.items()
    ]
    (root / "a.jsonl").write_text("\n".join(map(to_json, rows)))
    summary = run(config(tmp_path))
    kept = {r.id: r.questions[0].prompt for r in open_rows(DataRoot(str(root)), "prepared/a")}
    assert kept == {"mark": "what is it?", "plain": "what <b>is</b> it?"}
    (left,) = (json.loads(line) for line in (root / summary.report).read_text().splitlines())
    assert left["problem"] == "two: its text has marks for 2 recordings (<sound>), the row names 1"
