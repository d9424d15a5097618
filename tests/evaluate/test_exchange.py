"""Audio is exchanged with another recording that has another answer, and nothing else of a row changes."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from megatron_af.data.rows import Clip, Question, Row
from megatron_af.evaluate import exchange as module
from megatron_af.evaluate.exchange import exchange, plain_answer
from megatron_af.evaluate.hearing import questions_of
from tests.evaluate.rows import ROWS, row
from tests.examples import run_example


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_example(module, asked=questions_of(ROWS))
    assert capsys.readouterr().out.count("True") == 5


def recordings(rows: Sequence[Row]) -> list[str]:
    return [row.own_clips[-1].path for row in rows]


def test_audio_is_exchanged_within_equal_questions() -> None:
    asked = questions_of(ROWS)
    swapped = exchange(asked)
    assert [e.row.questions for e in swapped] == [r.questions for r in asked]
    heard = {e.row.questions[0].output: e.row.clips[0].path for e in swapped}
    assert sorted(heard[f"first? {n}"] for n in (0, 1, 2)) == ["0.flac", "1.flac", "2.flac"]  # a rotation
    assert (heard["last? 0"], heard["last? 3"]) == ("3.flac", "0.flac")
    assert [e.row.questions[0].prompt for e in swapped if not e.partner] == ["alone?"]
    assert heard["alone? 2"] != "2.flac"


def test_nobody_gets_their_own_recording_nor_one_with_the_same_answer() -> None:
    """Two recordings of six rows each, all asked the same; pieces of one file, and prepared copies of one digest."""
    question = Question(prompt="what?", output="rain")
    for prepared in (False, True):
        rows = [
            Row(
                id=f"{name}{n}",
                clips=(
                    Clip(path="shard", digest=name, length=9, offset=9 * n, duration=1.0)
                    if prepared
                    else Clip(path=name, start=float(n), duration=1.0),
                ),
                questions=(replace(question, output=f"{name} {n % 2}"),),
            )
            for name in "ab"
            for n in range(6)
        ]
        for seed in range(20):
            swapped = exchange(rows, seed)
            for before, after in zip(rows, swapped, strict=True):
                own, other = before.clips[0], after.row.clips[0]
                assert (own.digest or own.path) != (other.digest or other.path) and after.partner
            assert len({e.row.clips for e in swapped}) == 12, "exchanged, not drawn anew"


@pytest.mark.parametrize("answers", ["aabbbc", "aaaabb", "abcdef"])
def test_partners_want_another_answer(answers: str) -> None:
    rows = [row(n, "what?") for n in range(6)]
    rows = [replace(r, questions=(replace(r.questions[0], output=a),)) for r, a in zip(rows, answers, strict=True)]
    wanted = {r.clips: a for r, a in zip(rows, answers, strict=True)}
    for seed in range(20):
        swapped = exchange(rows, seed)
        assert all(wanted[e.row.clips] != a and e.partner for e, a in zip(swapped, answers, strict=True))
        assert (len({e.row.clips for e in swapped}) == 6) == (answers.count("a") <= 3), "exchanged, where numbers allow"


def test_who_has_no_partner_hears_any_other_recording() -> None:
    same = [replace(row(n, "what?"), questions=(Question(prompt="what?", output="Rain "),)) for n in range(3)]
    one = replace(same[0], id="one", questions=(Question(prompt="what?", output="rain"),))
    for seed in range(20):
        swapped = exchange([*same, one], seed)
        assert not any(e.partner for e in swapped)
        assert all(a != b for a, b in zip(recordings([*same, one]), recordings([e.row for e in swapped]), strict=True))
    with pytest.raises(ValueError, match="needs rows about two recordings"):
        exchange([same[0], one])


def test_exchanged_copies_keep_history_and_examples() -> None:
    def turns(number: int) -> tuple[Question, ...]:
        return tuple(Question(prompt=f"turn {t}?", output=f"answer {t} of {number}") for t in range(2))

    clips = [Clip(path=f"{n}.wav", duration=1.0) for n in range(6)]
    talks = [Row(id=f"d{n}", clips=(clips[n],), questions=turns(n), template="dialogue") for n in range(2)]
    shown = [
        Row(id=f"i{n}", clips=(clips[n + 4], clips[n + 2]), questions=turns(n), template="interleaved")
        for n in range(2)
    ]
    asked = questions_of([*talks, *shown])
    assert [len(r.questions) for r in asked] == [1, 2, 1, 2, 2, 2]
    swapped = [e.row for e in exchange(asked)]
    assert [(r.questions, r.template) for r in swapped] == [(r.questions, r.template) for r in asked]
    assert [len(r.clips) for r in swapped] == [1, 1, 1, 1, 2, 2]
    assert [r.clips[0] for r in swapped[4:]] == clips[4:], "an example keeps its own sound"
    assert all(a != b for a, b in zip(recordings(asked), recordings(swapped), strict=True))


def test_spaces_around_marks_do_not_make_another_answer() -> None:
    assert plain_answer("Yes , an air - conditioner .") == plain_answer("yes, an air-conditioner.")
    assert plain_answer("two dogs") != plain_answer("twodogs")
