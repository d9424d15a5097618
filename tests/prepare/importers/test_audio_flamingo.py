"""AF1's and AF2's manifests."""

import json
from pathlib import Path

import pytest

from megatron_af.config import ImportConfig
from megatron_af.foreign import ForeignError
from megatron_af.prepare.importers.audio_flamingo import task_words
from tests.data.toy import write_tone
from tests.prepare.importing import af_manifest, dump, problems, run


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


def test_what_is_no_row_is_named_and_the_others_stay(tmp_path: Path) -> None:
    write_tone(tmp_path / "w/a.wav", 3.0, 0)
    good = {"name": "a.wav", "prompt": "what?", "output": "rain"}
    items = {
        "0": good, "1": good | {"output": None}, "2": good | {"output": ["a", "b"]}, "3": None,
        "4": good | {"name": ""},
        "5": good | {"duration": "00:03"}, "6": {"name": "a.wav", "output": "x"}, "7": good | {"audio_start": -1},
        "8": {"name": "a.wav", "dialogue": [{"user": "hi"}]}, "9": good | {"name": "b\\a.wav"}, "10": good,
    }  # fmt: skip
    dump(tmp_path / "t.json", {"data": items})
    rows, report = run(tmp_path, ImportConfig(format="audio_flamingo", path="t.json", audio="w"))
    assert [row.id for row in rows] == ["0", "10"] and report.left_out == {"bad row": 8, "missing": 1}
    said = problems(tmp_path, report)
    for words, problem in zip(
        ["1: key 'output' must be text", "2: key 'output'", "3: expected an object, got null",
         "4: names no recording", "5: 'duration' must be seconds", "6: key 'prompt' is missing", "7: 'audio_start'",
         "8: key 'assistant' is missing", "backslash"], said, strict=True,
    ):  # fmt: skip
        assert words in problem and "Error" not in problem


@pytest.mark.parametrize("content", [[{"name": "a.wav"}], {"data": [{"id": "a"}]}, {"rows": {}}, 7])
def test_another_layout_is_refused_by_name(tmp_path: Path, content: object) -> None:
    dump(tmp_path / "t.json", content)
    with pytest.raises(ForeignError, match=r"t.json: .*'data'"):
        run(tmp_path, ImportConfig(format="audio_flamingo", path="t.json"))


def test_a_key_that_stands_twice_is_named_and_marks_are_none(tmp_path: Path) -> None:
    write_tone(tmp_path / "w/a.wav", 3.0, 0)
    item = '{"name": "a.wav", "prompt": "<audio> what?", "output": "rain"}'
    origin = ImportConfig(format="audio_flamingo", path="t.json", audio="w")
    (tmp_path / "t.json").write_text(f'{{"data": {{"0": {item}}}}}')
    (row,), _ = run(tmp_path, origin)
    assert row.questions[0].prompt == "what?"
    (tmp_path / "t.json").write_text(f'{{"data": {{"0": {item}, "0": {item}}}}}')
    with pytest.raises(ForeignError, match=r"'data' has the key '0' twice"):
        run(tmp_path, origin)


def test_few_shot_lists_of_another_split_are_named(tmp_path: Path) -> None:
    af_manifest(tmp_path, "train", 1)
    af_manifest(tmp_path, "val", 1)
    few = {"0": {"generation_index_in_split": 0, "fewshot_indices_in_train": [5]}}
    dump(tmp_path / "interleaved_knn-val.json", {"interleaved_data": few})
    rows, report = run(tmp_path, ImportConfig(format="audio_flamingo", path="interleaved_knn-val.json", audio="audio"))
    assert not rows and "train.json has no row 5: the two files do not belong" in problems(tmp_path, report)[0]


def test_a_part_of_a_recording_is_read_or_named(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 3.0, 0)
    stated = [{"audio_start": 1, "audio_end": 2.5}, {"audio_end": 2}, {"audio_start": 1, "duration": 0.5}]
    odd = [{"start": 1}, {"offset": 0.3, "duration": 0.2}, {"segment": [1, 2]}, {"audio_start": 2, "audio_end": 1}]
    row = {"name": "a.wav", "prompt": "p", "output": "o"}
    dump(tmp_path / "x.json", {"data": {str(n): row | keys for n, keys in enumerate([*stated, *odd])}})
    rows, report = run(tmp_path, ImportConfig(format="audio_flamingo", path="x.json"))
    assert [(r.clips[0].start, r.clips[0].duration) for r in rows] == [(1.0, 1.5), (0.0, 2.0), (1.0, 0.5)]
    words = ["stated in 'start'", "stated in 'offset'", "stated in 'segment'", "ends at 1 s, before it begins at 2 s"]
    assert all(word in problem for word, problem in zip(words, problems(tmp_path, report), strict=True))


def test_another_number_of_rows_than_stated_is_told(tmp_path: Path) -> None:
    af_manifest(tmp_path, "train", 3)
    origin = ImportConfig(format="audio_flamingo", path="train.json", audio="audio")
    assert run(tmp_path, origin)[1].notes == {}
    content = json.loads((tmp_path / "train.json").read_text())
    for stated in (5, "5", None):
        dump(tmp_path / "train.json", content | {"total_num": stated})
        rows, report = run(tmp_path, origin)
        ((count, told),) = report.notes.values()
        assert len(rows) == 3 and count == 1 and "total_num is" in told and "there are 3 rows" in told
