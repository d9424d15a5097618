"""What a preparation says at its end, and when it counts as failed."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import Config, DataConfig, DatasetConfig, ImportConfig, PrepareConfig
from megatron_af.prepare.outcome import import_rows, prepare_recordings
from tests.dali_pipes.tones import encoded
from tests.data.toy import write_tone
from tests.told import Told

ORIGIN = ImportConfig(format="rows", path="rows.jsonl")


def config(folder: Path, most: float) -> Config:
    dataset = DatasetConfig(manifest="prepared/a", source="a.jsonl", origin=ORIGIN)
    prepare = PrepareConfig(max_bad_fraction=most)
    return Config(name="i", data=DataConfig(root=str(folder), datasets={"a": dataset}, prepare=prepare))


@pytest.mark.parametrize(("most", "status"), [(0.5, 0), (0.49, 1)])
def test_the_part_that_is_left_out_decides(tmp_path: Path, most: float, status: int) -> None:
    write_tone(tmp_path / "here.wav", 1.0, seed=0)
    question = {"prompt": "what?", "output": "a tone"}
    rows = [{"id": name, "clips": [{"path": f"{name}.wav"}], "questions": [question]} for name in ("here", "gone")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = Told()
    assert import_rows(config(tmp_path, most), ["a"], told) == status
    said = "\n".join(told.lines)
    assert "a: 1 of 2 rows imported, 0 other files passed over\n  missing: 1\n  each of them: " in said
    assert ("a: failed, 50.0% left out; data.prepare.max_bad_fraction is 49.0%" in said) == bool(status)


def test_nothing_at_all_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "sounds" / "dog").mkdir(parents=True)
    (tmp_path / "sounds" / "dog" / "notes.txt").write_text("no recording")
    c = config(tmp_path, 0.99)
    dataset = replace(c.data.datasets["a"], origin=ImportConfig(format="labels", path="sounds"))
    c = replace(c, data=replace(c.data, datasets={"a": dataset}))
    assert import_rows(c, ["a"], told := Told()) == 2
    assert told.lines[0] == "a: 0 of 0 rows imported, 1 other files passed over"
    assert told.lines[-1] == "a: failed, it has no rows"
    assert prepare_recordings(c, ["a"], told := Told()) == 2 and told.lines[-1] == "a: failed, it has no rows"


def test_rows_of_text_alone_and_with_new_ids_are_told(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 1.0, seed=0)
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": 'a "clips": []'}]
    rows = [{"id": "x", "audio": audio, "conversations": turns} for audio in ("a.wav", None, [])]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    c = config(tmp_path, 0.0)
    dataset = replace(c.data.datasets["a"], origin=ImportConfig(format="conversations", path="rows.json"))
    c = replace(c, data=replace(c.data, datasets={"a": dataset}))
    assert import_rows(c, ["a"], told := Told()) == 0
    assert told.lines == [
        "a: 3 of 3 rows imported, 0 other files passed over",
        "  without a recording, of text alone: 2",
        "  renamed, for the id was another row's (now ID~2) or empty: 2",
    ]


@pytest.mark.parametrize("layout", ["csv", "webdataset"])
def test_a_table_of_a_header_and_a_tar_of_nothing_are_no_use_whatever_comes_behind(tmp_path: Path, layout: str) -> None:
    (tmp_path / "t.csv").write_text("f,c\n")
    tarfile.open(tmp_path / "t.tar", "w").close()
    (tmp_path / "rows.jsonl").write_text("{}\n")
    columns = {"audio": "f", "caption": "c"}
    origin = {
        "csv": ImportConfig(format="csv", path="t.csv", columns=columns),
        "webdataset": ImportConfig(format="webdataset", path="t.tar"),
    }[layout]
    c = config(tmp_path, 0.0)
    sets = {"none": replace(c.data.datasets["a"], origin=origin), "bad": c.data.datasets["a"]}
    c = replace(c, data=replace(c.data, datasets=sets))
    assert import_rows(c, ["none", "bad"], told := Told()) == 2
    assert "none: failed, it has no rows" in told.lines


@pytest.mark.slow
def test_what_should_be_known_of_recordings_that_were_read_is_told_by_kind(tmp_path: Path) -> None:
    for name in ("a.mkv", "b.mkv"):
        encoded(tmp_path / name, "libopus", 1.0, tracks=("eng", "deu"))
    question = {"prompt": "what?", "output": "a tone"}
    rows = [{"id": n, "clips": [{"path": n}], "questions": [question]} for n in ("a.mkv", "b.mkv")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    c = config(tmp_path, 0.0)
    assert import_rows(c, ["a"], Told()) == 0
    for _ in ("made", "made before"):
        assert prepare_recordings(c, ["a"], told := Told()) == 0
        assert told.lines[-2:] == [
            "  note, several tracks of sound: 2",
            f"  each of them: {tmp_path}/prepared/a/report.jsonl",
        ]
