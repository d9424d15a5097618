"""Tars are used in place; broken ones cost themselves."""

import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from megatron_af.config import ImportConfig
from tests.data.toy import write_tone
from tests.prepare.importing import problems, run


def test_web_dataset_tars_are_used_in_place(tmp_path: Path) -> None:
    def member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))

    write_tone(tmp_path / "t.wav", 1.5, 0)
    wave, rate = soundfile.read(tmp_path / "t.wav")
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="FLAC")
    (tmp_path / "w").mkdir()
    with tarfile.open(tmp_path / "w/0.tar", "w") as tar:
        member(tar, "x/a.flac", file.getvalue())
        member(tar, "x/a.json", json.dumps({"text": ["one", "two"]}).encode())
        member(tar, "x/b.flac", file.getvalue())
        member(tar, "x/b.txt", b"three\n")
        member(tar, "x/c.json", b"{}")
        member(tar, "x/d.flac", file.getvalue())
        member(tar, "x/e.flac", file.getvalue())
        member(tar, "x/e.txt", b"None")
    rows, report = run(tmp_path, ImportConfig(format="webdataset", path="w/*.tar"))
    assert [(r.id, r.captions) for r in rows] == [("x/a", ("one", "two")), ("x/b", ("three",))]
    assert report.left_out == {"bad row": 3}
    clip = rows[0].clips[0]
    assert clip.path == "w/0.tar" and clip.duration == 1.5
    assert (tmp_path / "w/0.tar").read_bytes()[clip.offset : clip.offset + clip.length] == file.getvalue()


def shard(path: Path, members: dict[str, bytes]) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path.read_bytes()


def flac(seconds: float = 1.0) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.sin(np.arange(round(seconds * 16_000)) / 10), 16_000, format="FLAC")
    return out.getvalue()


GOOD = {f"x/{i}.{kind}": content for i in range(3) for kind, content in (("flac", flac()), ("txt", b"rain"))}
ORIGIN = ImportConfig(format="webdataset", path="s/*.tar*")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"<html>404</html>", "s/0.tar is a web page"),
        (b"\x1f\x8b\x08" + bytes(range(200)), "s/0.tar is compressed (gzip): unpack it"),
        (b"", "s/0.tar is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_a_broken_shard_costs_itself(tmp_path: Path, bad: bytes, words: str) -> None:
    shard(tmp_path / "s/1.tar", GOOD)
    (tmp_path / "s/0.tar").write_bytes(bad)
    rows, report = run(tmp_path, ORIGIN)
    assert len(rows) == 3 and words in problems(tmp_path, report)[0]


def test_of_a_cut_shard_what_lies_before_the_cut_stays(tmp_path: Path) -> None:
    whole = shard(tmp_path / "s/0.tar", GOOD)
    (tmp_path / "s/0.tar").write_bytes(whole[: whole.rfind(b"fLaC") + 100])
    rows, report = run(tmp_path, ORIGIN)
    assert [row.id for row in rows] == ["x/0", "x/1"]
    assert "s/0.tar is cut or damaged; what lies behind x/2 in it is lost" in problems(tmp_path, report)[-1]


def test_of_tars_that_were_joined_the_first_is_read_and_the_others_are_told_of(tmp_path: Path) -> None:
    whole = shard(tmp_path / "s/0.tar", GOOD)
    (tmp_path / "s/0.tar").write_bytes(whole + bytes(4096))
    assert run(tmp_path, ORIGIN)[1].left_out == {}, "zeros fill a tar up"
    (tmp_path / "s/0.tar").write_bytes(whole + whole)
    rows, report = run(tmp_path, ORIGIN)
    assert len(rows) == 3 and "s/0.tar goes on behind its end" in problems(tmp_path, report)[0]


def test_members_are_told_apart(tmp_path: Path) -> None:
    shard(tmp_path / "s/0.tar", {
        "u/0.FLAC": flac(), "u/0.JSON": b'{"text": "rain"}', "._u/0.flac": b"x", "__MACOSX/u.json": b"x",
        "two/0.flac": flac(), "two/0.wav": flac(), "two/0.txt": b"rain", "n/0.png": b"x",
        "v/song.v1.flac": flac(), "v/song.v1.json": b'{"text": "a"}', "z/0.flac": flac(), "z/0.json": b"{",
    })  # fmt: skip
    rows, report = run(tmp_path, ORIGIN)
    assert [row.id for row in rows] == ["u/0"] and report.passed_over == 1
    said = " ".join(problems(tmp_path, report))
    assert "two/0: has 2 recordings" in said and "v/song: has the text" in said and "its json is not JSON" in said


def test_a_tar_leads_nowhere_else(tmp_path: Path) -> None:
    """Links, absolute names and names with ``..`` open nothing: what is read lies inside the tar."""
    (tmp_path / "secret.txt").write_text("canary")
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("../../etc/x", "/abs/y", "z"):
            for suffix, kind in ((".flac", tarfile.REGTYPE), (".txt", tarfile.SYMTYPE), (".json", tarfile.LNKTYPE)):
                info = tarfile.TarInfo(name + suffix)
                info.type = kind
                content = flac() if kind == tarfile.REGTYPE else b""
                info.size, info.linkname = len(content), str(tmp_path / "secret.txt")
                tar.addfile(info, io.BytesIO(content))
    rows, report = run(tmp_path, replace(ORIGIN, path="s.tar"))
    written = "".join(p.read_text(errors="replace") for p in tmp_path.glob("a*.jsonl"))
    assert not rows and report.passed_over == 6 and "canary" not in written


def test_shards_that_are_no_files_are_out_and_named(tmp_path: Path) -> None:
    shard(tmp_path / "w/0.tar", GOOD)
    os.mkfifo(tmp_path / "w/1.tar")
    (tmp_path / "w/2.tar").mkdir()
    rows, report = run(tmp_path, ImportConfig(format="webdataset", path="w/*.tar"))
    assert len(rows) == 3
    assert problems(tmp_path, report) == ["w/1.tar is a pipe, no file", "w/2.tar is a folder, no file"]


def test_every_recording_of_a_key_that_several_share_counts_as_lost(tmp_path: Path) -> None:
    """``-abc_10.000_20.000.wav``: a WebDataset's key ends at the first dot."""
    members = {f"u.{n}.{kind}": flac() if kind == "flac" else b"{}" for n in range(3) for kind in ("flac", "json")}
    shard(tmp_path / "a.tar", members | {"v.flac": flac(), "v.txt": b"rain"})
    rows, report = run(tmp_path, ImportConfig(format="webdataset", path="a.tar"))
    assert [row.id for row in rows] == ["v"] and report.left_out == {"bad row": 3}
    assert all("ends at its first dot" in problem for problem in problems(tmp_path, report))


@pytest.mark.parametrize(
    ("says", "out"),
    [
        ({"start": 0.2, "end": 0.5}, True),
        ({"start_time": "0.5"}, True),
        ({"start": 0, "end": 1.02}, False),
        ({"start": 0.5, "end": 1.5}, False),  # where it was cut out of a longer one
        ({"start": 30, "end": 31}, False),
        ({"start": "then", "end": [0.1, 0.2]}, False),
    ],
)
def test_a_part_that_a_json_states_is_not_taken_for_the_whole(
    tmp_path: Path, says: dict[str, object], out: bool
) -> None:
    write_tone(tmp_path / "a.wav", 1.0, 0)
    (tmp_path / "a.json").write_text(json.dumps({"text": "rain", **says}))
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in ("a.wav", "a.json"):
            tar.add(tmp_path / name, name)
    rows, report = run(tmp_path, ImportConfig(format="webdataset", path="t.tar"))
    assert len(rows) == (not out) and sum(report.left_out.values()) == out
    assert not out or "a: its json states a part of the recording in 'start" in problems(tmp_path, report)[0]


def test_other_words_beside_the_ones_that_are_taken_are_told(tmp_path: Path) -> None:
    said = {
        "a.json": json.dumps({"text": "rain", "caption": "it rains"}),
        "b.json": json.dumps({"caption": ["a dog", "a cat"]}),
        "b.txt": "a dog\n",
        "c.json": json.dumps({"text": ["nan"], "caption": "wind"}),
        "d.json": json.dumps({"caption": "a horn"}),
        "d.txt": "a horn, far away",
        "e.json": json.dumps({"id": "own", "captions": ["hail"]}),
        "e.txt": "snow",
        "f.txt": "fog",
        "g.json": json.dumps({"captions": ["ice", "sleet"]}),
    }
    sounds = {f"{key}.flac": flac() for key in "abcdefg"}
    shard(tmp_path / "w/0.tar", {**sounds, **{name: text.encode() for name, text in said.items()}})
    rows, report = run(tmp_path, ImportConfig(format="webdataset", path="w/*.tar"))
    taken = [("rain",), ("a dog", "a cat"), ("wind",), ("a horn",), ("hail",), ("fog",), ("ice", "sleet")]
    assert not report.left_out, problems(tmp_path, report)
    assert [row.captions for row in rows] == taken
    kind = "samples whose text, caption, captions and txt say different things: the first of these is taken"
    assert report.notes == {kind: (2, 'a: "rain" is taken, and not "it rains"')}


def test_a_place_at_which_no_recording_lies_is_told(tmp_path: Path) -> None:
    sound = flac()
    said = {"id": "a", "captions": ["rain"], "clips": [{"path": "old.tar", "duration": 1.0, "offset": 7, "length": 9}]}
    shard(tmp_path / "t.tar", {"a.flac": sound, "a.json": json.dumps(said).encode()})
    rows, report = run(tmp_path, ImportConfig(format="webdataset", path="t.tar"))
    (problem,) = problems(tmp_path, report)
    assert not rows and "a recording of 9 bytes begins at byte 7 of the tar, and none does" in problem
