"""JSON objects and files' names as rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_af.config import ImportConfig
from megatron_af.foreign import ForeignError
from tests.data.toy import write_tone
from tests.prepare.importing import dump, problems, run

ITEMS = [
    {"id": "x", "audio_id": "./a.wav", "question": "what?", "choices": ["rain", "hail"], "answer": "rain", "kind": 3},
    {"id": "y", "audio_id": "a.wav", "question": "why?", "choices": [], "answer": None, "kind": 1},
    {"id": "z", "audio_id": "a.wav", "question": {"deep": 1}, "choices": [], "answer": "b", "kind": 1},
    "no object",
]
COLUMNS = {"audio": "audio_id", "id": "id", "prompt": "question", "output": "answer", "options": "choices"}


@pytest.mark.parametrize("form", ["list", "keys", "lines", "named"])
def test_every_form_of_json_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    write_tone(tmp_path / "a.wav", 0.5, 0)
    content = {"list": ITEMS, "keys": {"1": ITEMS[0]}, "named": {"version": "2", "data": ITEMS}}.get(form)
    dump(tmp_path / "t.json", content)
    if form == "lines":
        (tmp_path / "t.json").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    rows, report = run(tmp_path, ImportConfig(format="json", path="t.json", columns=COLUMNS | {"skill": "kind"}))
    assert [(r.id, r.questions[0].output, r.questions[0].options, r.questions[0].skill) for r in rows] == [
        ("x", "rain", ("rain", "hail"), "3")
    ]
    if form != "keys":
        asks, deep, none = problems(tmp_path, report)
        assert "column 'question' asks, and 'answer', the answer, is empty" in asks or "no output" in asks
        assert "'question' must be text or a list of texts" in deep and "expected an object, got" in none


def test_what_is_no_text_says_nothing_and_keys_twice_are_named(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 0.5, 0)
    said = ["NaN", '["rain", NaN, null]', "Infinity", '"hail", "caption": "snow"', '"nan"']
    lines = [f'{{"file": "a.wav", "id": null, "caption": {caption}}}' for caption in said]
    two = '{"file": ["a.wav", "b.wav"], "id": null, "caption": "x"}'
    nameless = '{"file": NaN, "id": null, "caption": "x"}'
    (tmp_path / "t.json").write_text("\n".join([*lines, two, nameless]))
    columns = {"audio": "file", "id": "id", "caption": "caption"}
    (row,), report = run(tmp_path, ImportConfig(format="json", path="t.json", columns=columns))
    assert row.captions == ("rain",) and row.id == "1"
    named = problems(tmp_path, report)
    words = ["caption is empty", "got Infinity", "has the key 'caption' twice", "caption is empty", "'file' names 2"]
    words.append("the recording's name, is empty")
    assert all(word in problem for word, problem in zip(words, named, strict=True))


def test_the_first_of_a_list_is_the_answer_where_a_list_is_named(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 0.5, 0)
    dump(tmp_path / "t.json", [{"audio_id": "a.wav", "question": "what?", "answers": ["rain", "hail"]}])
    columns = {"audio": "audio_id", "prompt": "question", "output": "answers", "options": "answers"}
    (row,), _ = run(tmp_path, ImportConfig(format="json", path="t.json", columns=columns))
    assert (row.id, row.questions[0].output, row.questions[0].options) == ("0", "rain", ("rain", "hail"))


def test_names_of_files_say_what_is_in_them(tmp_path: Path) -> None:
    for name in ("Actor_01/1001_DFA_ANG_XX.wav", "Actor_02/1002_DFA_SAD_XX.wav", "readme.txt"):
        write_tone(tmp_path / "crema" / name, 0.5, 0) if name.endswith("wav") else (tmp_path / name).touch()
    (tmp_path / "crema/notes.txt").touch()
    write_tone(tmp_path / "crema/odd.wav", 0.5, 0)
    origin = ImportConfig(
        format="files",
        path="crema",
        audio="crema",
        pattern=r".*/\d+_\w+_(?P<emotion>[A-Z]+)_XX\.wav",
        columns={"audio": "name", "id": "name", "label": "emotion"},
        words={"ANG": "angry"},
    )
    rows, report = run(tmp_path, origin)
    assert [(row.id, row.meta["class"]) for row in rows] == [
        ("Actor_01/1001_DFA_ANG_XX.wav", "angry"),
        ("Actor_02/1002_DFA_SAD_XX.wav", "sad"),
    ]
    assert problems(tmp_path, report) == [
        "odd.wav does not fit origin.pattern",
        "no recording by its suffix, and it does not fit origin.pattern",
    ]
    assert report.left_out == {"bad row": 1} and report.passed_over == 1  # no text beside recordings ends an import
    for pattern, said in (("", "origin.pattern is empty"), ("(", "is no regular expression")):
        with pytest.raises(ForeignError, match=said):
            run(tmp_path, ImportConfig(format="files", path="crema", pattern=pattern, columns={"audio": "name"}))


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ({"columns": {"audio": "file", "prompt": "q", "output": "a"}}, "record 1: 'a' is missing; there are file, q"),
        ({"columns": {"audio": "file", "label": "a"}}, "record 1: 'a' is missing; there are file, q"),
        ({"columns": {"audio": "file", "labels": "a"}}, "record 1: 'a' is missing; there are file, q"),
        ({"columns": {"audio": "file", "class": "a"}}, "record 1: 'a' is missing; there are file, q"),
        ({"columns": {"audio": "file", "caption": "a"}}, "record 1: 'a' is missing; there are file, q"),
        ({"columns": {"audio": "file", "caption": "q"}, "where": {"a": ".*"}}, "record 1: 'a' is missing; there are"),
        (
            {"columns": {"audio": "file", "prompt": "q", "output": "a"}, "agreed": True},
            "record 1: 'a' is missing; there are file, q",
        ),
        (
            {"columns": {"audio": "file", "caption": "text"}, "apart": {"a": "kind"}},
            "record 1: no caption: text is empty",
        ),
        ({"columns": {"audio": "{a}.wav", "caption": "q"}}, "record 1: 'a' is missing; there are file, q"),
    ],
)
def test_a_record_without_a_field_costs_itself_alone(tmp_path: Path, origin: dict[str, Any], said: str) -> None:
    whole = [{"file": f"{n}.wav", "q": "what?", "a": str(n)} for n in (0, 2)]
    for name in "02":
        write_tone(tmp_path / f"{name}.wav", 0.5, 0)
    dump(tmp_path / "t.json", [whole[0], {"file": "0.wav", "q": "why?"}, whole[1]])
    rows, report = run(tmp_path, ImportConfig(format="json", path="t.json", **origin))
    (problem,) = problems(tmp_path, report)
    assert problem.startswith(said) and [row.clips[0].path for row in rows] == ["0.wav", "2.wav"]


def test_an_object_need_not_say_where_it_begins(tmp_path: Path) -> None:
    """NeMo leaves ``offset`` out where it is 0."""
    write_tone(tmp_path / "a.wav", 1.0, 0)
    said = {"audio_filepath": "a.wav", "duration": 0.5, "text": "x"}
    dump(tmp_path / "t.json", [said, said | {"offset": 0.25}, said | {"offset": None, "duration": None}])
    columns = {"audio": "audio_filepath", "caption": "text", "start": "offset", "duration": "duration"}
    rows, _ = run(tmp_path, ImportConfig(format="json", path="t.json", columns=columns))
    assert [(row.clips[0].start, row.clips[0].duration) for row in rows] == [(0, 0.5), (0.25, 0.5), (0, 1)]
