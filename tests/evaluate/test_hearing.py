"""Exchanged audio is another sample's, and the summary's numbers are those counted by hand."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from megatron_af.config import Config, DataConfig, DatasetConfig, StageConfig
from megatron_af.data.rows import Clip, Question, Row, to_json
from megatron_af.data.shards import record_batch, write_index
from megatron_af.data.storage import DataRoot
from megatron_af.evaluate import hearing
from megatron_af.evaluate.hearing import Asked, answer_lines, ask_all, evaluation_rows, measured_rows, summarise, table
from megatron_af.inference.writing import Answer
from tests.evaluate.rows import ROWS, row
from tests.examples import run_example


def said(text: Callable[[Row], str | None]) -> Callable[[Sequence[Row]], list[Answer | None]]:
    """Answers everything so; None: too long."""

    def answer(row: Row) -> Answer | None:
        told = text(row)
        return None if told is None else Answer(text=told, tokens=(), finish="stop", prompt_tokens=0, confidence=0.75)

    return lambda rows: [answer(row) for row in rows]


def test_every_question_is_asked_about_both_clips() -> None:
    asked = ask_all(
        said(lambda r: f"{r.questions[-1].prompt} {r.clips[0].path.removesuffix('.flac')}"), ROWS
    )
    assert [(a.row, a.prompt) for a in asked] == [(r.id, q.prompt) for r in ROWS for q in r.questions]
    assert all(a.heard == a.wanted and a.exchanged != a.wanted for a in asked)
    summary = summarise(asked)
    assert summary["overall"]["gap"] == 100
    assert summary["skills"]["first?"] == {"audio": 100.0, "exchanged": 0.0, "majority": 33.3, "n": 3}


def test_questions_about_one_exchanged_recording_are_asked_together_also_of_a_shard() -> None:
    rows = [
        Row(
            id=str(n),
            clips=(Clip(path="a.tar", offset=n, length=1, duration=1.0),),
            questions=tuple(Question(prompt=f"question {q}", output="no" if n % 2 else "yes") for q in range(4)),
        )
        for n in range(8)
    ]
    asked: list[Sequence[Row]] = []

    def answer(some: Sequence[Row]) -> list[Answer | None]:
        asked.append(some)
        return [None] * len(some)

    ask_all(answer, rows)
    for some in asked:
        assert len(list(groupby(one.clips for one in some))) == 8


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names = run_example(hearing, rows=ROWS, answer=said(lambda r: r.questions[-1].output))
    assert len(names["asked"]) == 6 and "Table" in capsys.readouterr().out


def test_questions_without_a_partner_are_counted() -> None:
    rows = [replace(row(n, "what?"), questions=(Question(prompt="what?", output="rain"),)) for n in range(3)]
    asked = ask_all(said(lambda r: "rain"), [*rows, row(3, "what?")])
    assert all(question.partner for question in asked)
    assert summarise(asked)["overall"]["no_partner"] == 0
    asked = ask_all(said(lambda r: "rain"), rows)
    assert not any(question.partner for question in asked)
    assert summarise(asked)["overall"]["no_partner"] == 3


def test_a_question_that_is_too_long_is_wrong_and_counted() -> None:
    asked = ask_all(said(lambda r: None if r.questions[-1].prompt == "last?" else r.questions[-1].output), ROWS)
    overall = summarise(asked)["overall"]
    assert (overall["too_long"], overall["no_partner"], overall["n"], overall["audio"]) == (2, 1, 6, 66.7)
    console = Console(width=100, record=True, file=None)
    with console.capture() as captured:
        console.print(table(summarise(asked)))
    assert "too long: 2, no recording with another answer: 1" in captured.get()


def test_a_conversation_is_measured_by_turn() -> None:
    turns = tuple(Question(prompt=f"{n}?", output=f"answer {n}") for n in range(3))
    rows = [replace(row(n), questions=turns[: 2 + n], template="dialogue") for n in range(2)]
    asked = ask_all(said(lambda r: r.questions[-1].output if len(r.questions) < 3 else ""), rows)
    assert [question.turn for question in asked] == [1, 2, 1, 2, 3]
    turns_of = summarise(asked)["turns"]
    assert {turn: (score["audio"], score["n"]) for turn, score in turns_of.items()} == {
        "1": (100.0, 2), "2": (100.0, 2), "3": (0.0, 1),
    }  # fmt: skip
    console = Console(width=100, record=True, file=None)
    with console.capture() as captured:
        console.print(table(summarise(asked)))
    assert "turn 3" in captured.get()
    assert "turns" not in summarise(ask_all(said(lambda r: "x"), ROWS)), "questions alone are no turns"


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


def test_how_far_confidence_can_be_trusted() -> None:
    def one(confidence: float, heard: str, unsure: bool | None, options: tuple[str, ...] = ("a", "b")) -> Asked:
        return Asked(row="r", skill="s", prompt="", wanted="a", heard=heard, exchanged="b", confidence=confidence,
                     options=options, unsure=unsure)  # fmt: skip

    asked = [one(0.95, "a", False), one(0.95, "a", False), one(0.95, "b", False), one(0.35, "b", True)]
    # Of ten bins two hold answers: 3 with 0.95 and 2/3 right, 1 with 0.35 and none.
    error = round(100 * (abs(3 * 0.95 - 2) + 0.35) / 4, 1)
    free = one(0.01, "a", True, options=())
    summary = summarise([*asked, free])
    assert summary["confidence"] == {"error": error, "answered": 75.0, "right": 66.7}
    console = Console(width=120, record=True, file=None)
    with console.capture() as captured:
        console.print(table(summary))
    assert "sure of 75.0%, of which 66.7% are right" in " ".join(captured.get().split())
    assert summarise([replace(question, unsure=None) for question in asked])["confidence"] == {"error": error}
    too_long = replace(one(0.0, "", None), too_long=True)
    assert summarise([*asked, too_long])["confidence"]["answered"] == 60.0, "not asked, so not sure of either"
    assert "confidence" not in summarise([free]), "no options, no class"
    lines = [json.loads(line) for line in answer_lines("test", asked)]
    assert [(line["confidence"], line["unsure"]) for line in lines] == [(0.95, False)] * 3 + [(0.35, True)]


def test_what_is_withheld_counts_as_what_was_said() -> None:
    def answer(rows: Sequence[Row]) -> list[Answer]:
        told = {"text": "none of these", "withheld": "first? 1", "confidence": 0.12345}
        return [Answer(**told, tokens=(), finish="stop", prompt_tokens=0) for _ in rows]  # type: ignore[arg-type]

    asked = ask_all(answer, ROWS, calibrated=True)
    assert {(q.heard, q.exchanged, q.unsure, q.confidence) for q in asked} == {("first? 1", "first? 1", True, 0.1235)}
    assert [question.right for question in asked].count(True) == 1
    assert {question.unsure for question in ask_all(said(lambda r: "x"), ROWS, calibrated=True)} == {False}
    assert {question.unsure for question in ask_all(said(lambda r: "x"), ROWS)} == {None}


@pytest.mark.parametrize("objective", ["answer", "contrastive"])
def test_a_row_that_cannot_be_asked_costs_no_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], objective: Literal["answer", "contrastive"]
) -> None:
    asked, other = ROWS[0], replace(ROWS[1], id=ROWS[0].id)
    quiet = replace(asked, id="quiet", questions=(), captions=("w1",))
    rows = [asked, other, replace(asked, id="text", clips=()), quiet]
    (tmp_path / "a.jsonl").write_text("".join(f"{line}\n" for line in (*map(to_json, rows), "{bad")))
    data = DataConfig(root=str(tmp_path), datasets={"a": DatasetConfig(manifest="a.jsonl")})
    stage = StageConfig(objective=objective, blend={}, max_windows=1)
    found = measured_rows(Config(name="x", data=data, curriculum={"s": stage}, stage="s"), "a")
    told = capsys.readouterr().out
    kept = [f"{asked.id}", f"{asked.id}~2"] if objective == "answer" else ["quiet"]
    assert [row.id for row in found] == kept
    assert told.startswith(f"a: {5 - len(kept)} of 5 rows are left out, such as {tmp_path}/a.jsonl:5: no JSON in")


def test_the_commonest_answer_is_counted_as_answers_are_compared() -> None:
    asked = [
        Asked(row=str(n), skill="s", prompt="", wanted=wanted, heard="yes", exchanged="no")
        for n, wanted in enumerate(("Yes", "yes", "YES ", "no"))
    ]
    overall = summarise(asked)["overall"]
    assert (overall["audio"], overall["majority"]) == (75.0, 75.0)
