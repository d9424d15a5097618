"""Marks of recordings in the questions of rows."""

from dataclasses import replace

import pytest

from megatron_af.data.rows import Clip, Question, Row, RowError
from megatron_af.prepare.importers.marks import without_marks

CLIP = Clip(path="a.wav", duration=1.0)


def row(*prompts: str, clips: int = 1, template: str = "single") -> Row:
    questions = tuple(Question(prompt=prompt, output="rain") for prompt in prompts)
    return Row(id="r", clips=(CLIP,) * clips, questions=questions, template=template)


def test_marks_go_where_they_agree_with_the_recordings() -> None:
    def asked(made: Row) -> list[str]:
        return [question.prompt for question in without_marks(made).questions]

    assert asked(row("<audio>what?", "<audio>why?")) == ["what?", "why?"], "each question is about the recording"
    assert asked(row("<audio>what?", "why?", template="dialogue")) == ["what?", "why?"]
    assert asked(row("<audio>a?", "<audio>b?", clips=2, template="interleaved")) == ["a?", "b?"]
    assert asked(row("is <audio> or <audio> louder?", clips=2)) == ["is sound 1 or sound 2 louder?"]
    plain = row("a <b> [c] {d} e")
    assert without_marks(plain) == plain and without_marks(replace(plain, questions=())) == replace(plain, questions=())


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (row("<audio>what?", "<audio>why?", template="dialogue"), "marks for 2 recordings"),
        (row("<audio>what?", clips=0), "the row names no recording"),
        (row("<audio>what?", clips=2), "the row names 2"),
        (row("<sound-2> what?"), "<sound-2>"),
        (row("<|image_1|>what?"), "<|image_1|>"),
        (replace(row("what?"), questions=(Question(prompt="what?", output="<sound>"),)), "in an answer"),
    ],
)
def test_marks_that_do_not_agree_are_named(odd: Row, words: str) -> None:
    with pytest.raises(RowError) as told:
        without_marks(odd)
    assert words in str(told.value)
