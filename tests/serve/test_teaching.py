"""What cannot be taught is refused in one sentence, and what can is added whole."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dali_pipes.waves import AudioError
from megatron_af.config import ModelConfig
from megatron_af.data.rows import Row
from megatron_af.data.templates import TooLong
from megatron_af.inference.requests import BadRequest
from megatron_af.serve.teaching import check_lesson, show
from tests.data.toy import write_tone


class Pupil:
    """Keeps what it is shown; refuses what it is told to."""

    def __init__(self, problem: Exception | None = None) -> None:
        self.rows: list[Row] = []
        self.problem = problem

    def __len__(self) -> int:
        return 3

    def add(self, row: Row, root: Path) -> None:
        if self.problem:
            raise self.problem
        assert all((root / clip.path).is_file() for clip in row.clips)
        self.rows.append(row)


def test_a_clip_each_is_an_example_with_the_label(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tone(tmp_path / f"{name}.wav", 0.5, len(name))
    pupil: Any = Pupil()
    show(pupil, "creak", [tmp_path / "a.wav", tmp_path / "b.wav"], "what is it?")
    (row,) = pupil.rows
    assert len(row.clips) == 2 and [(q.prompt, q.output) for q in row.questions] == [("what is it?", "creak")] * 2


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (AudioError("no sound"), "teach: 'creak': no sound"),
        (TooLong(Row(id="r"), 9, 8, 1, prompt=True), "4 examples take more than the 8 tokens"),
    ],
)
def test_what_cannot_be_added_is_one_sentence(problem: Exception, said: str, tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 0.5, 0)
    pupil: Any = Pupil(problem)
    with pytest.raises(BadRequest, match="(?s)" + said.replace("'", ".")):
        show(pupil, "creak", [tmp_path / "a.wav"], "what is it?")


@pytest.mark.parametrize(
    ("label", "clips", "said"),
    [
        ("creak", [], "expected recordings of it, got none"),
        ("creak", "a.wav", "got one: put it into a list"),
        (" ", ["a.wav"], "expected a label, got none"),
    ],
)
def test_a_lesson_of_nothing_is_refused(label: str, clips: Any, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        check_lesson(label, clips, ModelConfig())


def test_a_model_that_can_keep_nothing_is_not_taught() -> None:
    model = ModelConfig()
    check_lesson("creak", ["a.wav"], model)
    with pytest.raises(BadRequest, match="sees = row"):
        check_lesson("creak", ["a.wav"], replace(model, transform=replace(model.transform, sees="row")))
