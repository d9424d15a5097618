"""Conversations in the field's ways of writing them."""

import json
from pathlib import Path

import pytest

from megatron_af.config import ImportConfig
from megatron_af.data.rows import Row
from megatron_af.foreign import ForeignError
from tests.data.toy import write_tone
from tests.prepare.importing import dump, problems, run


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


NO_MARK = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "rain"}]
ASKED = [{"from": "human", "value": "<sound>\nwhat?"}, {"from": "gpt", "value": "rain"}]


def imported(folder: Path, items: list[object], lines: bool = False) -> tuple[list[Row], list[str]]:
    write_tone(folder / "w/a.wav", 3.0, 0)
    text = "\n".join(map(json.dumps, items)) if lines else json.dumps(items)
    (folder / "t.json").write_text(text)
    rows, report = run(folder, ImportConfig(format="conversations", path="t.json", audio="w"))
    return rows, problems(folder, report)


@pytest.mark.parametrize("lines", [False, True])
def test_the_field_s_ways_of_writing_them_are_read(tmp_path: Path, lines: bool) -> None:
    marked = [{"from": "human", "value": "<audio>\nwhat?"}, ASKED[1]]
    chat = [{"role": "user", "content": "<audio>what?"}, {"role": "assistant", "content": "rain"}]
    items: list[object] = [
        {"sound": "a.wav", "conversations": ASKED},
        {"audio": "a.wav", "conversations": marked},
        {"audios": ["a.wav"], "messages": chat},
        {"audios": ["a.wav"], "query": "<audio>what?", "response": "rain"},
        {
            "sound": ["a.wav"],
            "conversations": [{"from": "user", "value": "what?"}, {"from": "assistant", "value": "rain"}],
        },
    ]
    rows, said = imported(tmp_path, items, lines)
    assert not said and len(rows) == 5
    assert all(len(r.clips) == 1 and (r.questions[0].prompt, r.questions[0].output) == ("what?", "rain") for r in rows)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"conversations": ASKED}, "marks for 1 recordings"),
        ({"sound": ["a.wav", "a.wav"], "conversations": ASKED}, "the row names 2"),
        ({"wav": "a.wav", "conversations": ASKED}, "key 'wav' holds a recording"),
        ({"sound": "a.wav", "audio": "a.wav", "conversations": ASKED}, "both name recordings"),
        ({"conversations": [{"from": "human", "value": "<audio>a.wav</audio>what?"}, ASKED[1]]}, "inside the text"),
        ({"sound": "a.wav", "conversations": [{"from": "human", "value": "<sound-2> what?"}, ASKED[1]]}, "<sound-2>"),
        ({"sound": "a.wav", "conversations": [{"from": "system", "value": "short"}, *ASKED]}, "system turn"),
        ({"sound": "a.wav", "conversations": [ASKED]}, "expected a turn"),
        ({"sound": "a.wav", "conversations": "x"}, "must be a list"),
        ({"sound": "a.wav"}, "expected 'conversations', 'messages' or 'query'"),
        ({"file": {"path": "a.wav"}, "conversations": NO_MARK}, "key 'file' holds a recording"),
        ({"media": [{"url": "a.wav"}], "conversations": NO_MARK}, "key 'media' holds a recording"),
        ({"audio_path": "clips/a", "conversations": NO_MARK}, "key 'audio_path' holds a recording"),
        ({"file_name": "a", "conversations": NO_MARK}, "key 'file_name' holds a recording"),
        ({"audio_files": ["clips/a"], "conversations": NO_MARK}, "key 'audio_files' holds a recording"),
        ({"audio_b64": "UklG" * 500, "conversations": NO_MARK}, "key 'audio_b64' holds a recording"),
        ({"image": "x.jpg", "conversations": NO_MARK}, "key 'image' holds what is seen"),
        ({"sound": "a.wav", "images": ["x.jpg"], "conversations": ASKED}, "key 'images' holds what is seen"),
        ({"conversations": [NO_MARK[0] | {"audio": "a.wav"}, NO_MARK[1]]}, "a turn's key 'audio' holds a recording"),
        ({"conversations": [NO_MARK[0] | {"audio_path": "a"}, NO_MARK[1]]}, "a turn's key 'audio_path' holds"),
        ({"sound": "a.wav", "conversations": [NO_MARK[0], NO_MARK[1] | {"out": "b.wav"}]}, "a turn's key 'out' holds"),
        ({"sound": "a.wav", "conversations": [NO_MARK[0] | {"start": 1}, NO_MARK[1]]}, "'start' of a turn"),
        ({"sound": "a.wav", "system": "Be short.", "conversations": ASKED}, "a key 'system', which no template"),
        *(
            ({"sound": "a.wav", "conversations": ASKED, key: value}, f"key {key!r} is {shown}")
            for key, value, shown in (("loss", False, "false"), ("weight", 0, "0"), ("loss_mask", [1, 0], "[1, 0]"))
        ),
        ({"sound": "a.wav", "conversations": [NO_MARK[0], NO_MARK[1] | {"weight": 0}]}, "key 'weight' is 0"),
        *(
            ({"sound": "a.wav", "conversations": ASKED, key: value}, f"is stated in {key!r}, which is not read")
            for key, value in (
                ("segment", [1, 2]),
                ("from", 1.5),
                ("t_start", 1.5),
                ("chunk_end", 1.5),
                ("clip", [1, 2]),
                ("timestamps", [[0, 1.5]]),
                ("interval", {"from": 0, "to": 1}),
                ("time_range", "0.5-1.5"),
                ("t0", 0.5),
                ("t_1", 0.5),
                ("xmin", 0.5),
                ("seek", 0.5),
                ("timestamp", "00:01 - 00:02"),
                ("start_ms", 500),
                ("offset_seconds", "0.5"),
            )
        ),
        ({"sound": "a.wav", "conversations": ASKED, "offset": 1}, "'offset' begins a part"),
        ({"sound": "a.wav", "conversations": ASKED, "start": 1, "offset": 2}, "'offset' begins a part"),
        ({"sound": "a.wav", "conversations": ASKED, "start": 1, "begin": 2}, "'start' and 'begin' say different"),
        ({"sound": ["a.wav"] * 2, "start": 1, "conversations": NO_MARK}, "names 2 recordings: whose is it?"),
        ({"sound": "a.wav", "start": 2, "end": 1, "conversations": ASKED}, "ends at 1 s, before it begins at 2 s"),
        *(
            ({"sound": "a.wav", "conversations": [{"from": "human", "value": f"{mark}what?"}, ASKED[1]]}, mark)
            for mark in (
                *("<AUDIO>", "<audio_1>", "<|audio_1|>", "<SpeechHere>", "<image>"),
                *("[AUDIO]", "[AUDIO_0]", "{sound}", "{audio1}"),
            )
        ),
        ({"sound": "a.wav", "conversations": [ASKED[0], {"from": "gpt", "value": "<sound>rain"}]}, "in an answer"),
        ({"sound": "a.wav", "conversations": [ASKED[0], {"from": "gpt", "value": None}]}, "'value' must be text"),
        (None, "got null"),
        ([{"sound": "a.wav"}], "expected an object"),
    ],
)
def test_a_row_that_is_none_is_named_and_the_others_stay(tmp_path: Path, item: object, words: str) -> None:
    good = {"sound": "a.wav", "conversations": ASKED}
    rows, said = imported(tmp_path, [good, item, good])
    assert len(rows) == 2 and len(said) == 1 and words in said[0] and "Error" not in said[0]


PARTS = {"type": "text", "text": "what?"}


def chat(*parts: dict[str, object]) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": [*parts]}, {"role": "assistant", "content": [PARTS]}]}


def test_turns_in_parts_are_read_as_qwen2_audio_and_openai_write_them(tmp_path: Path) -> None:
    rows, said = imported(tmp_path, [
        chat({"type": "audio", "audio_url": "a.wav"}, PARTS),
        chat({"type": "audio", "audio": "a.wav"}, PARTS | {"audio": None}),
        chat({"type": "audio_url", "audio_url": {"url": "a.wav"}}, PARTS),
        chat(PARTS, {"type": "audio"}) | {"audios": ["a.wav"]},
        chat({"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}}, PARTS),
        chat({"type": "audio", "audio": "a.wav"}, PARTS) | {"audios": ["a.wav"]},
        chat({"type": "image", "image": "x.jpg"}, PARTS),
        chat({"type": "audio", "audio": "a.wav", "start": 1}, PARTS),
        chat({"type": "audio", "audio": "a.wav"}, PARTS | {"audio": "b.wav"}),
    ])  # fmt: skip
    assert [(len(r.clips), r.questions[0].prompt, r.questions[0].output) for r in rows] == [(1, "what?", "what?")] * 4
    named = ("inside its text", "in its turns and under 'audios'", "of type", "'start' of a turn", "a part of text's")
    for words, problem in zip(named, said, strict=True):
        assert words in problem


@pytest.mark.parametrize("form", ["keys", "named"])
def test_conversations_by_key_or_under_a_name_are_read(tmp_path: Path, form: str) -> None:
    item = {"sound": "a.wav", "conversations": ASKED}
    write_tone(tmp_path / "w/a.wav", 3.0, 0)
    dump(tmp_path / "t.json", {"keys": {"x": item, "y": item}, "named": {"version": 1, "data": [item, item]}}[form])
    rows, report = run(tmp_path, ImportConfig(format="conversations", path="t.json", audio="w"))
    assert [row.id for row in rows] == (["x", "y"] if form == "keys" else ["0", "1"]) and not report.left_out


def test_each_of_several_recordings_has_its_own_length(tmp_path: Path) -> None:
    (row,), said = imported(tmp_path, [{"sound": ["a.wav"] * 2, "duration": 6.0, "conversations": NO_MARK}])
    assert [clip.duration for clip in row.clips] == [3.0, 3.0] and not said


def test_a_broken_line_costs_itself_and_a_broken_list_is_refused(tmp_path: Path) -> None:
    good = json.dumps({"sound": "a.wav", "conversations": ASKED})
    write_tone(tmp_path / "w/a.wav", 3.0, 0)
    (tmp_path / "t.json").write_text(f"{good}\n{good[:-9]}\n{good}\n")
    rows, report = run(tmp_path, ImportConfig(format="conversations", path="t.json", audio="w"))
    assert len(rows) == 2 and "line 2 is not JSON" in problems(tmp_path, report)[0]
    for broken in (f"[{good},\n{good[:-9]}", f"[\n{good}\n{good}\n]", f"[\n{good},\n{good}"):
        (tmp_path / "t.json").write_text(broken)
        with pytest.raises(ForeignError, match=r"t.json is not JSON: .* in line [23]"):
            run(tmp_path, ImportConfig(format="conversations", path="t.json", audio="w"))


@pytest.mark.parametrize(
    ("asked", "sounds", "expected"),
    [
        ("<sound>\nwhat?", 1, "what?"),
        ("what? <sound>", 1, "what?"),
        ("first: <sound>\nsecond: <sound>\nwhich?", 2, "first: \nsecond: \nwhich?"),
        ("is <sound-1> louder than <sound-2>?", 2, "is sound 1 louder than sound 2?"),
        ("<sound-1> or <sound-2>?", 2, "sound 1 or sound 2?"),
        ("<sound> or <sound>?", 2, "sound 1 or sound 2?"),
        ("In <sound>, who speaks?", 1, "In the sound, who speaks?"),
    ],
)
def test_a_mark_inside_a_sentence_becomes_words(tmp_path: Path, asked: str, sounds: int, expected: str) -> None:
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": "rain"}]
    (row,), said = imported(tmp_path, [{"sound": ["a.wav"] * sounds, "conversations": turns}])
    assert row.questions[0].prompt == expected and not said


def test_what_turns_say_that_changes_nothing_is_no_problem(tmp_path: Path) -> None:
    asked = ASKED[0] | {"loss": False, "weight": 0, "timestamp": "2024-05-01", "audio": "elsewhere/a.wav"}
    answer = ASKED[1] | {"loss": True, "weight": 1, "audio": None}
    rows, said = imported(tmp_path, [{"sound": "a.wav", "conversations": [asked, answer], "system": "", "loss": True}])
    assert len(rows) == 1 and not said


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"start": 1, "end": 2.5}, (1.0, 1.5)),
        ({"audio_start": 1}, (1.0, 2.0)),
        ({"start_time": "1", "duration": 0.5}, (1.0, 0.5)),
        ({"end": 2}, (0.0, 2.0)),
        ({"offset": 0.5, "duration": 0.25}, (0.5, 0.25)),
        ({"onset": 0.5, "offset": 0.75}, (0.5, 0.25)),
        ({"begin": 0.5, "end": 0.75}, (0.5, 0.25)),
        ({"begin_time": 0.5, "end_time": 0.75}, (0.5, 0.25)),
        ({"offset": 0}, (0.0, 3.0)),
        ({"segment": "news", "timestamp": "2024-05-01T10:00:00", "start_ms": 0}, (0.0, 3.0)),
    ],
)
def test_a_row_may_be_about_a_part_of_its_recording(
    tmp_path: Path, keys: dict[str, object], expected: tuple[float, float]
) -> None:
    (row,), _ = imported(tmp_path, [{"sound": "a.wav", "conversations": ASKED, **keys}])
    assert (row.clips[0].start, row.clips[0].duration) == expected
