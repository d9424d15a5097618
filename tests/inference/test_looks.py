"""What is kept of a look is what was seen; the same rows are drawn each time."""

from pathlib import Path

import numpy as np

from megatron_af.data.rows import Clip, Question, Row
from megatron_af.inference.looks import Look, draw, fixed_samples, read_looks, write_looks

LOOK = Look(
    prompt="what?", tokens=("a", " dog"), seconds=10.0, row="r1",
    weights_TL=np.array([[0.75, 0.25], [1 / 3, 2 / 3]]), token_seconds_L=np.array([0.0, 5.0]),
)  # fmt: skip


def test_looks_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_looks([LOOK, LOOK], tmp_path / "a.json")
    again = read_looks(tmp_path / "a.json")
    assert len(again) == 2 and (again[1].prompt, again[1].tokens, again[1].seconds, again[1].row) == (
        LOOK.prompt, LOOK.tokens, LOOK.seconds, LOOK.row,
    )  # fmt: skip
    np.testing.assert_allclose(again[1].weights_TL, LOOK.weights_TL, atol=1e-5)
    np.testing.assert_array_equal(again[1].token_seconds_L, LOOK.token_seconds_L)


def test_the_first_rows_about_one_recording_are_asked_their_first_question() -> None:
    clip = Clip(path="a.wav", duration=1.0)
    asked = tuple(Question(prompt=f"{n}?", output="x") for n in range(2))
    rows = [
        Row(id="two", clips=(clip, clip), questions=asked),
        Row(id="none", clips=(clip,), captions=("x",)),
        *(Row(id=f"one-{n}", clips=(clip,), questions=asked, template="dialogue") for n in range(3)),
    ]
    chosen = fixed_samples(rows, 2)
    shapes = [(row.id, len(row.questions), row.template) for row in chosen]
    assert shapes == [("one-0", 1, "single"), ("one-1", 1, "single")]


def test_no_picture_of_an_older_checkpoint_stays(tmp_path: Path) -> None:
    draw([LOOK, LOOK], tmp_path, "attention-test")
    draw([LOOK], tmp_path, "attention-test")
    assert [path.name for path in tmp_path.glob("*.png")] == ["attention-test-1.png"]
