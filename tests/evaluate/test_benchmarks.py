"""Every shipped benchmark is read from a small copy of its published layout; bad questions are left out and named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_af.config import ImportConfig
from megatron_af.data.rows import Clip, Question, Row
from megatron_af.data.storage import DataRoot, StorageError
from megatron_af.evaluate.benchmarks import questions_of_rows, read_questions
from megatron_af.evaluate.exchange import exchange
from megatron_af.foreign import ForeignError
from megatron_af.runs.benchmarks import Benchmark, load_benchmark, shipped
from tests.data.toy import write_tone
from tests.evaluate.layouts import LAYOUTS


def test_every_shipped_benchmark_has_a_layout_here() -> None:
    assert sorted(LAYOUTS) == shipped()


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts_are_read(name: str, tmp_path: Path) -> None:
    layout, benchmark = LAYOUTS[name], load_benchmark(name)
    layout.write(tmp_path)
    found = read_questions(benchmark, DataRoot(str(tmp_path)))
    assert found.reasons == layout.left_out
    assert [(one.references, len(one.question.options)) for one in found.questions] == [
        (references, options) for _, references, options in layout.asked
    ]
    for one, (prompt, _, _) in zip(found.questions, layout.asked, strict=True):
        assert prompt in one.worded(benchmark.wordings[0]).questions[-1].prompt
        for wording in benchmark.wordings:
            assert "{" not in one.worded(wording).questions[-1].prompt
        assert all(reference in one.question.options for reference in one.references) or name in (
            *("fsd50k", "audioset", "audio_entailment"),
            *(n for n in LAYOUTS if not one.question.options),
        )


def row(number: int, *questions: Question, template: str = "single") -> Row:
    clip = Clip(path=f"{number}.wav", duration=1.0)
    return Row(id=str(number), clips=(clip,), questions=questions, template=template)


PLAIN = Benchmark(title="x", source=ImportConfig(format="rows", path="x"), metrics=("exact",))


def test_what_cannot_be_measured_is_left_out_and_what_is_odd_is_counted() -> None:
    options = ("dog", "dog bark", "rain")
    found = questions_of_rows(
        PLAIN,
        [
            row(0, Question(prompt="?", output="dog", options=options)),
            row(1, Question(prompt="?", output="cat", options=options)),
            row(2, Question(prompt="?", output="Rain", options=("rain ", "RAIN", "dog"))),
            row(3, Question(prompt="?", output="free")),
        ],
    )
    assert [one.id for one in found.questions] == ["0", "3"] and found.notes == {"options contain each other": 1}
    assert [entry["problem"] for entry in found.left_out] == [
        "1: its answer is none of its options: 'cat' of dog, dog bark, rain",
        "2: two options are the same: rain",
    ]


def test_letters_in_front_of_options_and_in_the_place_of_answers_are_no_words() -> None:
    plain, lettered = ("rain", "hail"), ("(A) rain", "(B) hail")
    asked = replace(PLAIN, wordings=("{question} {options}",))
    answers = [("B", plain), ("(B) hail", plain), ("hail", lettered), ("B", lettered), ("(B) hail", lettered)]
    rows = [row(n, Question(prompt="?", output=answer, options=o)) for n, (answer, o) in enumerate(answers)]
    found = questions_of_rows(asked, rows)
    assert not found.left_out
    assert {one.references for one in found.questions} == {("hail",)}
    assert {one.worded(asked.wordings[0]).questions[-1].prompt for one in found.questions} == {"? (A) rain (B) hail"}
    shuffled = questions_of_rows(replace(asked, shuffle_options=True), rows)
    assert {one.references for one in shuffled.questions} == {("hail",)}


def test_another_answer_to_the_same_question_is_one_of_the_benchmark_s_options() -> None:
    clip, same = row(0).clips, replace(PLAIN, options=("rain", "hail"))
    rows = [replace(row(n, Question(prompt="?", output=o)), clips=clip) for n, o in enumerate(("rain", "B", "wind"))]
    found = questions_of_rows(same, rows)
    assert [one.references for one in found.questions] == [("rain", "hail")]
    assert [entry["problem"][:2] for entry in found.left_out] == ["2:"]


def test_more_options_than_letters_are_not_asked_by_letters() -> None:
    many = [row(0, Question(prompt="?", output="o28", options=tuple(f"o{n}" for n in range(30))))]
    assert len(questions_of_rows(PLAIN, many).questions) == 1
    left_out = questions_of_rows(replace(PLAIN, wordings=("{question} {options}",)), many).left_out
    assert left_out[0]["problem"].startswith("0: more options than letters: 30")


def talk(*turns: str) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for who, text in zip(("human", "gpt"), turns, strict=False)]


@pytest.mark.parametrize(
    ("source", "good", "bad", "said"),
    [
        (
            {"format": "json", "columns": {"audio": "file", "prompt": "q", "output": "a"}},
            {"file": "a.wav", "q": "what?", "a": "rain"},
            {"file": "a.wav", "q": "why?"},
            "record 1: 'a' is missing; there are file, q",
        ),
        (
            {"format": "json", "columns": {"audio": "file", "prompt": "q", "output": "a", "options": "o"}},
            {"file": "a.wav", "q": "what?", "a": "rain", "o": ["rain", "hail"]},
            {"file": "a.wav", "q": "why?", "a": None, "o": ["rain", "hail"]},
            "record 1: no output: a is empty",
        ),
        (
            {"format": "conversations"},
            {"id": "1", "sound": "a.wav", "conversations": talk("what?", "rain")},
            {"id": "2", "sound": "a.wav", "conversations": talk("why?")},
            "2: conversations must alternate between human and gpt (user and assistant), got",
        ),
        (
            {"format": "rows"},
            {"id": "1", "clips": [{"path": "a.wav"}], "questions": [{"prompt": "what?", "output": "rain"}]},
            {"id": "2", "clips": [{"path": "a.wav"}], "questions": [{"prompt": "why?"}]},
            "'output' is missing",
        ),
    ],
    ids=["field", "nothing", "conversation", "row"],
)
def test_a_row_without_an_answer_is_left_out_and_named(
    source: dict[str, Any], good: dict[str, Any], bad: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write_tone(tmp_path / "a.wav", 1.0, 0)
    (tmp_path / "x").write_text(json.dumps([good, bad]))
    found = read_questions(replace(PLAIN, source=ImportConfig(**{"path": "x", **source})), DataRoot(str(tmp_path)))
    assert [one.references for one in found.questions] == [("rain",)]
    (entry,) = found.left_out
    assert entry["reason"] == "bad row" and said in entry["problem"]


def test_turns_keep_what_was_said_before_and_ids_are_told_apart() -> None:
    turns = Question(prompt="what?", output="a"), Question(prompt="and?", output="b")
    found = questions_of_rows(PLAIN, [row(0, *turns, template="dialogue"), row(0, Question(prompt="who?", output="c"))])
    assert [(one.id, len(one.row.questions)) for one in found.questions] == [("0#1", 1), ("0#2", 2), ("0", 1)]
    same = questions_of_rows(PLAIN, [row(0, *turns)])
    assert [one.id for one in same.questions] == ["0", "0~2"]


def test_options_get_an_order_of_their_own_that_stays() -> None:
    options = tuple("abcdefgh")
    rows = [row(n, Question(prompt="?", output="a", options=options)) for n in range(40)]
    shuffled = replace(PLAIN, shuffle_options=True)
    first, again = (questions_of_rows(shuffled, rows).questions for _ in range(2))
    places = [one.question.options.index("a") for one in first]
    assert len(set(places)) > 5 and first == again
    assert [one.question.options for one in questions_of_rows(PLAIN, rows).questions] == [options] * 40


def test_a_layout_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises((StorageError, FileNotFoundError), match=r"esc50/meta/esc50\.csv"):
        read_questions(load_benchmark("esc50"), DataRoot(str(tmp_path)))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("[]", "none of its 0 rows can be asked"),
        (
            '{"id": "a", "questions": [{"prompt": "?", "output": "cat", "options": ["dog", "owl"]}]}\n',
            "none of its 1 rows can be asked; the first: a: its answer",
        ),
    ],
)
def test_a_benchmark_that_asks_nothing_is_told_of_before_it_is_measured(lines: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(lines)
    with pytest.raises(ForeignError, match=told):
        read_questions(PLAIN, DataRoot(str(tmp_path)))


def test_recordings_of_one_shard_are_asked_about_one_by_one() -> None:
    inside = Clip(path="0.tar", duration=1.0, length=99)
    rows = [
        replace(row(n, Question(prompt="what?", output=f"a{n}")), clips=(replace(inside, offset=512 * n),))
        for n in range(3)
    ]
    found = questions_of_rows(PLAIN, rows).questions
    assert [one.references for one in found] == [("a0",), ("a1",), ("a2",)]
    assert len({one.group for one in found}) == 3
    assert all(other.partner for other in exchange([one.row for one in found]))


def test_questions_that_a_layout_repeats_all_count() -> None:
    same = row(0, Question(prompt="?", output="dog", options=("dog", "rain")))
    assert [one.id for one in questions_of_rows(PLAIN, [same] * 4).questions] == ["0", "0~2", "0~3", "0~4"]


def test_a_question_with_an_empty_option_is_left_out() -> None:
    asked = row(0, Question(prompt="?", output="dog", options=("dog", "rain", " ")))
    (left,) = questions_of_rows(PLAIN, [asked]).left_out
    assert left["reason"] == "an option is empty" and left["problem"].startswith("0: an option is empty")
