"""Exchanged audio is another sample's, and the summary's numbers are those counted by hand."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from megatron_af.config import Config, DataConfig, DatasetConfig
from megatron_af.data.rows import Clip, Question, Row, to_json
from megatron_af.data.shards import record_batch, write_index
from megatron_af.data.storage import DataRoot
from megatron_af.evaluate import hearing
from megatron_af.evaluate.hearing import Asked, ask_all, evaluation_rows, exchange, questions_of, summarise, table
from tests.examples import run_example


def row(number: int, *prompts: str) -> Row:
    return Row(
        id=str(number),
        clips=(Clip(path=f"{number}.flac", duration=1.0),),
        questions=tuple(Question(prompt=p, output=f"{p} {number}", skill=p) for p in prompts),
    )


ROWS = [row(0, "first?", "last?"), row(1, "first?"), row(2, "first?", "alone?"), row(3, "last?")]


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


def test_who_has_no_partner_hears_any_other_recording_and_is_counted() -> None:
    same = [replace(row(n, "what?"), questions=(Question(prompt="what?", output="Rain "),)) for n in range(3)]
    one = replace(same[0], id="one", questions=(Question(prompt="what?", output="rain"),))
    asked = ask_all(lambda rows: ["rain"] * len(rows), [*same, one])
    assert not any(question.partner for question in asked)
    assert summarise(asked)["overall"]["no_partner"] == 4
    for seed in range(20):
        swapped = exchange([*same, one], seed)
        assert all(a != b for a, b in zip(recordings([*same, one]), recordings([e.row for e in swapped]), strict=True))
    with pytest.raises(ValueError, match="needs rows about two recordings"):
        exchange([same[0], one])


def test_exchanged_copies_keep_history_and_examples() -> None:
    def turns(number: int) -> tuple[Question, ...]:
        return tuple(Question(prompt=f"turn {t}?", output=f"answer {t} of {number}") for t in range(2))

    clips = [Clip(path=f"{n}.wav", duration=1.0) for n in range(4)]
    talks = [Row(id=f"d{n}", clips=(clips[n],), questions=turns(n), template="dialogue") for n in range(2)]
    shown = [
        Row(id=f"i{n}", clips=(clips[1 - n], clips[n + 2]), questions=turns(n), template="interleaved")
        for n in range(2)
    ]
    asked = questions_of([*talks, *shown])
    assert [len(r.questions) for r in asked] == [1, 2, 1, 2, 2, 2]
    swapped = [e.row for e in exchange(asked)]
    assert [(r.questions, r.template) for r in swapped] == [(r.questions, r.template) for r in asked]
    assert [len(r.clips) for r in swapped] == [1, 1, 1, 1, 2, 2]
    assert [r.clips[0] for r in swapped[4:]] == [clips[1], clips[0]], "an example keeps its own sound"
    assert all(a != b for a, b in zip(recordings(asked), recordings(swapped), strict=True))


def test_every_question_is_asked_about_both_clips() -> None:
    def answer(rows: Sequence[Row]) -> list[str]:
        return [f"{r.questions[-1].prompt} {r.clips[0].path.removesuffix('.flac')}" for r in rows]

    asked = ask_all(answer, ROWS)
    assert [(a.row, a.prompt) for a in asked] == [(r.id, q.prompt) for r in ROWS for q in r.questions]
    assert all(a.heard == a.wanted and a.exchanged != a.wanted for a in asked)
    summary = summarise(asked)
    assert summary["overall"]["gap"] == 100
    assert summary["skills"]["first?"] == {"audio": 100.0, "exchanged": 0.0, "majority": 33.3, "n": 3}


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names = run_example(hearing, rows=ROWS, answer=lambda rows: [r.questions[-1].output for r in rows])
    assert len(names["asked"]) == 6 and "Table" in capsys.readouterr().out


def test_a_question_that_is_too_long_is_wrong_and_counted() -> None:
    asked = ask_all(lambda rows: [None if r.questions[-1].prompt == "last?" else r.questions[-1].output for r in rows],
                    ROWS)  # fmt: skip
    overall = summarise(asked)["overall"]
    assert (overall["too_long"], overall["no_partner"], overall["n"], overall["audio"]) == (2, 1, 6, 66.7)
    console = Console(width=100, record=True, file=None)
    with console.capture() as captured:
        console.print(table(summarise(asked)))
    assert "too long: 2, no recording with another answer: 1" in captured.get()


@pytest.mark.parametrize("manifest", ["a.jsonl", "prepared/a"])
def test_rows_are_read_wherever_training_reads_them(tmp_path: Path, manifest: str) -> None:
    root = f"{tmp_path}/store"
    store = DataRoot(root)
    store.write("a.jsonl", "".join(f"{to_json(row)}\n" for row in ROWS).encode())
    write_index(tmp_path / "index", [record_batch(ROWS, [1] * len(ROWS))])
    store.write("prepared/a/index.arrow", (tmp_path / "index").read_bytes())
    for place in (root, f"file://{root}"):
        data = DataConfig(root=place, datasets={"a": DatasetConfig(manifest=manifest)})
        assert evaluation_rows(Config(name="x", data=data), "a") == ROWS


@pytest.mark.parametrize("rows", [[], [replace(ROWS[0], clips=())], [replace(ROWS[0], questions=())]])
def test_what_cannot_be_asked_is_refused(rows: list[Row]) -> None:
    with pytest.raises(ValueError, match="an evaluation of hearing needs"):
        ask_all(lambda rows: [], rows)


def test_numbers_by_hand() -> None:
    def one(row: int, skill: str, wanted: str, heard: str, exchanged: str) -> Asked:
        return Asked(row=str(row), skill=skill, prompt="", wanted=wanted, heard=heard, exchanged=exchanged)

    asked = [
        one(0, "count", "two", "two", "two"),
        one(1, "count", "two", "Two ", "three"),
        one(2, "count", "one", "two", "two"),
        one(3, "order", "bell", "bell", "drum"),
    ]
    summary = summarise(asked)
    assert summary["skills"]["count"] == {"audio": 66.7, "exchanged": 33.3, "majority": 66.7, "n": 3}
    overall = summary["overall"]
    assert (overall["audio"], overall["exchanged"], overall["majority"]) == (75.0, 25.0, 75.0)
    assert overall["gap"] == 50.0
    low, high = overall["interval"]
    assert 0 <= low < 50 < high <= 100
    console = Console(width=100, record=True, file=None)
    with console.capture() as captured:
        console.print(table(summary, "demo"))
    assert "+50.0" in captured.get() and "order" in captured.get()
