"""Conversations from strong labels: what the language model is told, and which of its replies are kept."""

import json
from pathlib import Path

import pytest

from megatron_af.data.rows import Clip, Manifest, Row, Span, to_json
from megatron_af.prepare.dialogues import DialogueConfig, Dialogues, write_dialogues

CLIP = Clip(path="a.flac", duration=10.0)
BARKS = Span(start=4.0, end=5.5, captions=("a dog barks",))
RAIN = Span(start=0.0, end=10.0, captions=("rain",))
STRONG = Row(id="strong", clips=(CLIP,), spans=(BARKS, RAIN), captions=("rain and a dog",), meta={"kept": 1})
MUSIC = Row(id="music", clips=(CLIP,), captions=("a slow piano piece", "recorded live"))
UNKNOWN = Row(id="unknown", clips=(CLIP,), questions=())
SEVERAL = Row(id="several", clips=(CLIP, CLIP), captions=("both",))
GOOD = [
    {"user": "What do you hear?", "assistant": "Steady rain, and a dog that barks."},
    {"user": "When does it bark?", "assistant": " About half-way through. "},
]


def config(folder: Path, endpoint: str = "") -> DialogueConfig:
    return DialogueConfig(
        source=str(folder / "in.jsonl"),
        output=str(folder / "out.jsonl"),
        endpoint=endpoint,
        model="toy",
        rows_per_request=2,
        concurrency=1,
        requests_per_minute=60_000,
    )


def test_rows_with_strong_labels_become_conversations(tmp_path, start):
    def answer(items, number):
        return 200, json.dumps({"dialogues": [{"id": item["id"], "turns": GOOD} for item in items]}), {}

    server = start(answer)
    lines = [to_json(row) for row in (STRONG, MUSIC, SEVERAL)]
    (tmp_path / "in.jsonl").write_text("".join(f"{line}\n" for line in lines))
    report = write_dialogues(config(tmp_path, server.endpoint))
    assert report.refused == {"several": "the row has 2 clips, a conversation is about one"}
    rain = {"sound": "rain", "begins": 0.0, "ends": 10.0}
    bark = {"sound": "a dog barks", "begins": 4.0, "ends": 5.5}
    assert server.items[0] == {"id": 0, "seconds": 10.0, "sounds": [rain, bark]}
    assert server.items[1] == {"id": 1, "seconds": 10.0, "description": "a slow piano piece recorded live"}
    assert "1 to 4 rounds" in server.bodies[0]["messages"][0]["content"]
    strong, music = Manifest(tmp_path / "out.jsonl")
    assert (strong.template, strong.task, strong.clips, strong.meta) == ("dialogue", "dialog", (CLIP,), {"kept": 1})
    assert [(turn.prompt, turn.output) for turn in strong.questions] == [
        ("What do you hear?", "Steady rain, and a dog that barks."),
        ("When does it bark?", "About half-way through."),
    ]
    assert not strong.captions and not strong.spans, "the filter by sound judges the answers"
    assert music.id == "music"


def test_what_nothing_is_known_of_is_not_asked(tmp_path):
    assert Dialogues(config(tmp_path)).asked(UNKNOWN) == "nothing is known of the recording: no spans, no captions"


def turns(**changed: object) -> list[dict[str, object]]:
    return [GOOD[0], {**GOOD[1], **changed}]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (turns(assistant="As an AI, I only know text."), "it says 'as an ai': written about, not heard"),
        (turns(assistant="The caption tells of rain."), "it says 'caption'"),
        (turns(user="What do the labels say?"), "it says 'labels'"),
        (turns(assistant="I can't tell."), "it says 'i can t'"),
        (turns(user="what do you hear"), "a question is asked twice"),
        (turns(assistant=" "), "a question or an answer is empty or missing"),
        (turns(assistant=None), "a question or an answer is empty or missing"),
        (turns(assistant="rain " * 81), "more than 80 words"),
        ([], "0 turns instead of 1 to 4"),
        (GOOD * 3, "6 turns instead of 1 to 4"),
        ("rain", "turns must be a list"),
        (["rain"], "turns must be a list"),
    ],
)
def test_each_defect_of_a_reply_has_its_reason(tmp_path, said, reason):
    problem = Dialogues(config(tmp_path)).check({"id": 0, "turns": said}, STRONG)
    assert isinstance(problem, str) and reason in problem


def test_words_that_only_look_alike_are_no_phrases(tmp_path):
    said = turns(assistant="A labelling machine, providedly.")
    assert isinstance(Dialogues(config(tmp_path)).check({"id": 0, "turns": said}, STRONG), dict)
