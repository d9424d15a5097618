"""One small copy of each layout, and the rows that must come out of it."""

import csv
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile

from megatron_af.config import Config, DataConfig, DatasetConfig, ImportConfig
from megatron_af.data.rows import Manifest, Row
from megatron_af.prepare.importers import ImportReport, import_dataset, task_words
from tests.data.toy import write_tone


def run(folder: Path, origin: ImportConfig) -> tuple[list[Row], ImportReport]:
    dataset = DatasetConfig(manifest="prepared/a", source="a.jsonl", origin=origin)
    config = Config(name="i", data=DataConfig(root=str(folder), datasets={"a": dataset}))
    report = import_dataset(config, "a")
    return list(Manifest(folder / "a.jsonl")), report


def dump(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def table(path: Path, lines: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def af_manifest(folder: Path, name: str, count: int) -> None:
    data = {str(i): {"name": f"{name}{i}.wav", "prompt": f"p{i}", "output": f"{name} {i}"} for i in range(count)}
    for i in range(count):
        write_tone(folder / "audio" / name / f"{name}{i}.wav", 1.0 + i, i)
    content = {"split": name, "split_path": name, "flamingo_task": "Clotho-v2-AudioCaptioning", "total_num": count}
    dump(folder / f"{name}.json", content | {"data": data})


def test_audio_flamingo_manifests(tmp_path: Path) -> None:
    af_manifest(tmp_path, "train", 3)
    content = json.loads((tmp_path / "train.json").read_text())
    content["data"]["1"] |= {"audio_start": "0.5", "duration": 1.0}
    content["data"]["2"]["name"] = "missing.wav"
    dump(tmp_path / "train.json", content)
    rows, report = run(tmp_path, ImportConfig(format="audio_flamingo", path="train.json", audio="audio"))
    assert [row.id for row in rows] == ["0", "1"] and report.left_out == {"missing": 1}
    assert rows[0].clips[0].path == "audio/train/train0.wav" and rows[0].clips[0].duration == 1.0
    assert (rows[1].clips[0].start, rows[1].clips[0].duration) == (0.5, 1.0)
    assert rows[0].task == "audio captioning" and rows[0].questions[0].output == "train 0"


def test_audio_flamingo_interleaved_and_dialogue(tmp_path: Path) -> None:
    af_manifest(tmp_path, "train", 3)
    af_manifest(tmp_path, "val", 2)
    few = {"0": {"generation_index_in_split": 1, "fewshot_indices_in_train": [2, 0]}}
    content = json.loads((tmp_path / "val.json").read_text())
    del content["data"]
    dump(tmp_path / "interleaved_knn-val.json", content | {"interleaved_data": few})
    (row,), _ = run(tmp_path, ImportConfig(format="audio_flamingo", path="interleaved_knn-val.json", audio="audio"))
    assert row.template == "interleaved" and [q.output for q in row.questions] == ["train 2", "train 0", "val 1"]
    assert [c.path for c in row.clips] == ["audio/train/train2.wav", "audio/train/train0.wav", "audio/val/val1.wav"]
    (tmp_path / "interleaved_knn-val.json").rename(tmp_path / "interleaved_random-val.json")
    (row,), _ = run(tmp_path, ImportConfig(format="audio_flamingo", path="interleaved_random-val.json", audio="audio"))
    assert row.template == "interleaved_random" and len(row.clips) == 3
    turns = [{"user": "What?", "assistant": "Rain."}, {"user": "More?", "assistant": "No."}]
    dump(tmp_path / "d.json", {"split_path": "train", "data": {"7": {"name": "train0.wav", "dialogue": turns}}})
    (row,), _ = run(tmp_path, ImportConfig(format="audio_flamingo", path="d.json", audio="audio"))
    assert row.template == "dialogue" and [q.prompt for q in row.questions] == ["What?", "More?"]


def test_conversations(tmp_path: Path) -> None:
    write_tone(tmp_path / "sounds/x.wav", 3.0, 0)

    def turn(who: str, text: str) -> dict[str, str]:
        return {"from": who, "value": text}

    single = [turn("human", "<sound>\nWhich one? (A) dog (B) cat"), turn("gpt", "(A) dog")]
    items = [
        {"id": "s", "sound": "x.wav", "duration": 3.0, "conversations": single},
        {"id": "d", "sound": "x.wav", "conversations": [*single, turn("human", "Sure?"), turn("gpt", "Yes.")]},
        {"id": "b", "sound": "x.wav", "conversations": single[:1]},
    ]
    dump(tmp_path / "skills.json", items)
    rows, report = run(tmp_path, ImportConfig(format="conversations", path="skills.json", audio="sounds"))
    assert [(r.id, r.template, len(r.questions)) for r in rows] == [("s", "single", 1), ("d", "dialogue", 2)]
    assert rows[0].questions[0].prompt == "Which one? (A) dog (B) cat" and rows[1].clips[0].duration == 3.0
    assert report.left_out == {"bad row": 1} and "alternate" in (tmp_path / report.report).read_text()


def test_tables_of_clotho_audiocaps_musiccaps(tmp_path: Path) -> None:
    write_tone(tmp_path / "c/a b.wav", 2.0, 0)
    table(tmp_path / "clotho.csv", [{"file_name": "a b.wav", "caption_1": "one", "caption_2": "two"}])
    columns = {"audio": "file_name", "caption": "caption_1,caption_2"}
    (row,), _ = run(tmp_path, ImportConfig(format="csv", path="clotho.csv", audio="c", columns=columns))
    assert row.captions == ("one", "two") and [q.output for q in row.questions] == ["one", "two"]
    assert row.questions[0].prompt == "describe the sound in a sentence."
    write_tone(tmp_path / "m/yt1.wav", 30.0, 1)
    music = {"ytid": "yt1", "start_s": 10, "end_s": 20, "caption": "a tune", "aspect_list": "['x']"}
    table(tmp_path / "music.csv", [music, music | {"ytid": "yt2"}])
    columns = {"audio": "{ytid}.wav", "id": "ytid", "start": "start_s", "end": "end_s", "caption": "caption"}
    (row,), report = run(
        tmp_path,
        ImportConfig(
            format="csv",
            path="music.csv",
            audio="m",
            columns=columns,
            prompt="describe the music.",
            task="music captioning",
        ),
    )
    assert (row.id, row.clips[0].start, row.clips[0].duration) == ("yt1", 10.0, 10.0) and report.left_out == {
        "missing": 1
    }
    assert (row.questions[0].prompt, row.task) == ("describe the music.", "music captioning")
    said = [{"audiocap_id": i, "youtube_id": "-x y", "start_time": 30, "caption": f"rain {i}"} for i in range(2)]
    table(tmp_path / "audiocaps.csv", said)  # cut out of the video already: start_time is no place in the file
    write_tone(tmp_path / "ac/-x y.wav", 10.0, 2)
    columns = {"audio": "{youtube_id}.wav", "id": "audiocap_id", "caption": "caption"}
    rows, _ = run(tmp_path, ImportConfig(format="csv", path="audiocaps.csv", audio="ac", columns=columns))
    assert [(r.id, r.captions, r.clips[0].start, r.clips[0].duration) for r in rows] == [
        ("0", ("rain 0",), 0.0, 10.0), ("1", ("rain 1",), 0.0, 10.0),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"origin.columns must name audio.*the table has"):
        run(tmp_path, ImportConfig(format="csv", path="music.csv", columns={"audio": "file"}))


def test_labels_from_a_table_and_from_folders(tmp_path: Path) -> None:
    files = {"1-1.wav": "dog_bark", "1-2.wav": "air_conditioner", "1-3.wav": "dog_bark"}
    for name, label in files.items():
        write_tone(tmp_path / "esc" / name, 0.5, 0)
        write_tone(tmp_path / "folders" / label / name, 0.5, 0)
    table(tmp_path / "esc50.csv", [{"filename": n, "fold": 1, "category": c} for n, c in files.items()])
    expected = "classify this sound.\nOPTIONS:\n - air conditioner.\n - dog bark."
    columns = {"audio": "filename", "label": "category"}
    rows, _ = run(tmp_path, ImportConfig(format="csv", path="esc50.csv", audio="esc", columns=columns))
    assert [r.questions[0].output for r in rows] == ["dog bark", "air conditioner", "dog bark"]
    assert all(r.questions[0].prompt == expected for r in rows)
    rows, _ = run(tmp_path, ImportConfig(format="labels", path="folders"))
    assert sorted(r.questions[0].output for r in rows) == ["air conditioner", "dog bark", "dog bark"]
    assert rows[0].questions[0].prompt == expected and rows[0].questions[0].options == ("air conditioner", "dog bark")
    table(tmp_path / "emo.csv", [{"filename": "1-1.wav", "category": "Anger"}])
    origin = ImportConfig(format="csv", path="emo.csv", audio="esc", columns=columns, task="emotion classification")
    assert run(tmp_path, origin)[0][0].questions[0].output == "angry"


def test_questions_with_the_same_two_answers_get_the_binary_options(tmp_path: Path) -> None:
    write_tone(tmp_path / "x.wav", 0.5, 0)
    lines = [{"file": "x.wav", "q": "is it a dog?", "a": "Yes"}, {"file": "x.wav", "q": "is it loud?", "a": "no"}]
    table(tmp_path / "aqa.csv", lines)
    columns = {"audio": "file", "prompt": "q", "label": "a"}
    rows, _ = run(
        tmp_path, ImportConfig(format="csv", path="aqa.csv", columns=columns, task="audio question answering")
    )
    assert [r.questions[0].prompt for r in rows] == [
        "is it a dog?\nOPTIONS:\nyes.\nno.",
        "is it loud?\nOPTIONS:\nyes.\nno.",
    ]
    assert [r.questions[0].output for r in rows] == ["yes", "no"]
    with pytest.raises(ValueError, match=r"outputs answer a prompt"):
        run(tmp_path, ImportConfig(format="csv", path="aqa.csv", columns={"audio": "file", "output": "a"}))


def test_our_own_rows_are_checked_and_completed(tmp_path: Path) -> None:
    write_tone(tmp_path / "sounds/x.wav", 2.0, 0)
    asked = {"prompt": "what?", "output": "rain"}
    lines = [
        {"id": "whole", "clips": [{"path": "x.wav"}], "questions": [asked], "meta": {"n": 1}},
        {"id": "piece", "clips": [{"path": "x.wav", "start": 0.5, "duration": 1.0}], "questions": [asked]},
        {"id": "words", "questions": [asked]},
        {"id": "gone", "clips": [{"path": "y.wav"}], "questions": [asked]},
        {"id": "odd", "clips": [{"path": "x.wav", "begin": 1}], "questions": [asked]},
        {"id": "out", "clips": [{"path": "../sounds/x.wav"}], "questions": [asked]},
    ]
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "\n{broken\n")
    rows, report = run(tmp_path, ImportConfig(format="rows", path="theirs.jsonl", audio="sounds"))
    assert [(r.id, [(c.path, c.start, c.duration) for c in r.clips]) for r in rows] == [
        ("whole", [("sounds/x.wav", 0.0, 2.0)]), ("piece", [("sounds/x.wav", 0.5, 1.0)]), ("words", []),
    ]  # fmt: skip
    assert rows[0].meta == {"n": 1} and report.left_out == {"bad row": 3, "missing": 1}
    left_out = [json.loads(line) for line in (tmp_path / report.report).read_text().splitlines()]
    assert [entry["row"] for entry in left_out] == [4, 5, 6, 7] and "unknown key 'begin'" in left_out[1]["problem"]


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
    rows, report = run(tmp_path, ImportConfig(format="webdataset", path="w/*.tar"))
    assert [(r.id, r.captions) for r in rows] == [("x/a", ("one", "two")), ("x/b", ("three",))]
    assert report.left_out == {"bad row": 2}
    clip = rows[0].clips[0]
    assert clip.path == "w/0.tar" and clip.duration == 1.5
    assert (tmp_path / "w/0.tar").read_bytes()[clip.offset : clip.offset + clip.length] == file.getvalue()


def test_names_never_leave_the_data_root(tmp_path: Path) -> None:
    write_tone(tmp_path / "out.wav", 1.0, 0)
    root = tmp_path / "data"
    dump(root / "x.json", {"split_path": "../", "data": {"0": {"name": "out.wav", "prompt": "p", "output": "o"}}})
    rows, report = run(root, ImportConfig(format="audio_flamingo", path="x.json"))
    assert rows == [] and report.left_out == {"bad row": 1} and "data.root" in (root / report.report).read_text()
    dump(
        root / "y.json", {"split_path": str(tmp_path), "data": {"0": {"name": "out.wav", "prompt": "p", "output": "o"}}}
    )
    assert run(root, ImportConfig(format="audio_flamingo", path="y.json"))[0] == []


def test_wrong_files_and_configurations_are_refused(tmp_path: Path) -> None:
    dump(tmp_path / "x.json", {"rows": []})
    with pytest.raises(ValueError, match="expected keys 'data'"):
        run(tmp_path, ImportConfig(format="audio_flamingo", path="x.json"))
    (tmp_path / "y.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        run(tmp_path, ImportConfig(format="conversations", path="y.json"))
    with pytest.raises(ValueError, match="no such tar files"):
        run(tmp_path, ImportConfig(format="webdataset", path="*.tar"))
    config = Config(name="i", data=DataConfig(root=str(tmp_path), datasets={"a": DatasetConfig(manifest="a")}))
    with pytest.raises(ValueError, match="importing needs origin"):
        import_dataset(config, "a")
    assert replace(config, name="j").name == "j"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Clotho-AQA-AQA", "audio question answering"),
        ("CochlScene-SceneClassification", "scene classification"),
        ("LP-MusicCaps-MSD-AudioCaptioning", "music captioning"),
        ("NSynth-InstrClassification/train", "instrument classification"),
    ],
)
def test_task_words(name: str, words: str) -> None:
    assert task_words(name) == words
