"""Replies about skills are used where they hold together with what is known, and refused with the reason elsewhere."""

from dataclasses import replace
from typing import Any

import pytest

from megatron_af.data.rows import Question
from megatron_af.prepare.written_skills import LONG, SHORT, SelfCheck, WrittenSkill, known
from tests.prepare.labelled import labelled

ROW = replace(
    labelled(("dog", 1.0, 2.0), ("door slam", 3.0, 3.5)),
    captions=("a dog barks at a door",),
    meta={"transcript": "go away"},
)
GOOD = {
    "question": "what upsets the animal?",
    "answer": "A door slams",
    "options": ["a door slams", "a bell rings", "rain falls", "a car stops"],
    "evidence": ["dog", "door slam"],
}


def test_a_good_reply_becomes_a_question() -> None:
    task = WrittenSkill("contextual_sound")
    found = task.check(GOOD, ROW)
    assert isinstance(found, dict)
    (question,) = task.made(ROW, found).questions
    assert (question.output, question.skill, len(question.options)) == ("a door slams", "contextual sound", 4)
    assert task.asked(ROW) == {
        "seconds": 10.0,
        "sounds": [{"sound": "dog", "begins": 1.0, "ends": 2.0}, {"sound": "door slam", "begins": 3.0, "ends": 3.5}],
        "description": "a dog barks at a door",
        "transcript": "go away",
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"options": GOOD["options"][:3]}, "3 different options instead of 4"),
        ({"options": [*GOOD["options"][:3], "Rain falls!"]}, "3 different options instead of 4"),
        ({"answer": "thunder"}, "the answer is none of the options"),
        ({"options": ["a door slams", "a door slams twice", "x", "y"]}, "an option contains another one"),
        ({"question": "why is it that a door slams?"}, "the question says the answer"),
        ({"question": "what does the caption say?"}, "it says 'caption'"),
        ({"evidence": ["cat"]}, "evidence names what is not heard there"),
        ({"evidence": ["do"]}, "evidence names what is not heard there"),
        ({"evidence": ["dog", "…"]}, "evidence names what is not heard there"),
        ({"evidence": []}, "evidence is missing"),
        ({"options": "abc"}, "must be texts"),
        ({"options": [1, 2, 3, 4]}, "must be texts"),
        ({"question": "  "}, "must be texts"),
        ({"question": "why " * 81}, "more than 80 words"),
    ],
)
def test_replies_of_no_use_are_refused(change: dict[str, Any], said: str) -> None:
    problem = WrittenSkill("contextual_sound").check({**GOOD, **change}, ROW)
    assert isinstance(problem, str) and said in problem


def test_the_check_must_find_the_same_option() -> None:
    row = replace(ROW, questions=(Question(prompt="q?", output="a door slams", options=("a door slams", "rain")),))
    assert SelfCheck().check({"answer": "A door slams."}, row) == {}
    assert SelfCheck().check({"answer": "rain"}, row) == "the check finds another option"
    assert SelfCheck().check({"answer": None}, row) == "the check finds no option, or several"
    asked = SelfCheck().asked(row)
    assert isinstance(asked, dict) and asked["options"] == ["a door slams", "rain"] and "answer" not in asked


def test_every_kind_says_what_it_is_and_long_captions_are_open() -> None:
    texts = {WrittenSkill(kind).instructions for kind in (*SHORT, *LONG)}
    assert len(texts) == 11 and all("JSON" in text for text in texts)
    found = WrittenSkill("captioning").check({**GOOD, "options": []}, ROW)
    assert isinstance(found, dict) and found["options"] == []
    assert "nothing is known" in str(known(replace(ROW, spans=(), captions=(), meta={})))
    assert "labelled until 12 s" in str(known(labelled(("dog", 8.0, 12.0))))
