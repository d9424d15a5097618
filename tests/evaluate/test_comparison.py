"""Two measurements are paired by question, and the page plays what flipped."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.data.storage import DataRoot
from megatron_af.evaluate.answered import read_answered, write_answered
from megatron_af.evaluate.comparison import NotComparable, compare, comparison_page, comparison_table, shared_suites
from megatron_af.runs.results import Results
from tests.evaluate.two_runs import two


def test_gains_are_paired_and_flips_are_known(tmp_path: Path) -> None:
    now, before = two(tmp_path)
    assert shared_suites(now, before) == ["toy"]
    found = compare(now, before, "toy")
    (line,) = found.lines
    assert (line.metric, line.unparseable, found.unpaired) == ("exact", (0, 3), 1)
    assert line.before == pytest.approx(20 / 29) and line.now == pytest.approx(28 / 29)
    assert 0 < line.interval[0] < 8 / 29 < line.interval[1] and line.chance < 0.05
    assert [flip.won for flip in found.flips] == [True] * 9 + [False]
    assert comparison_table(found).row_count == 1
    same = compare(now, now, "toy")
    assert same.flips == [] and {line.chance for line in same.lines} == {1.0}


def test_a_question_with_another_right_answer_is_another_one(tmp_path: Path) -> None:
    now, before = two(tmp_path)
    asked = read_answered(before / "suite-toy.parquet")
    others = [replace(one, references=("hail",)) if i < 9 else one for i, one in enumerate(asked)]
    write_answered(before / "suite-toy.parquet", others, {"exact": [float(i >= 9) for i in range(len(others))]})
    found = compare(now, before, "toy")
    assert [flip.won for flip in found.flips] == [False] and found.unpaired == 1 + 2 * 9
    assert found.lines[0].before == 1.0 and found.lines[0].now == pytest.approx(19 / 20)


def test_the_page_plays_and_escapes(tmp_path: Path) -> None:
    now, before = two(tmp_path)
    text = comparison_page([compare(now, before, "toy")], DataRoot(str(tmp_path)))
    assert len(re.findall("<audio", text)) == 9 and "gone.wav cannot be read" in text
    assert "right now, wrong before: 9, by exact" in text and "wrong now, right before: 1, by exact" in text
    assert "wind &amp; &lt;b&gt;" in text and "what &lt;3&gt;?" in text and "<b>" not in text
    assert "1 questions stand in one of the two alone" in text


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    now, before = two(tmp_path)
    with pytest.raises(NotComparable, match=r"before/suite-other\.parquet is not there: measure with"):
        compare(now, before, "other")
    with pytest.raises(NotComparable, match="do not both have cider; they have exact"):
        compare(now, before, "toy", "cider")
    write_answered(before / "suite-toy.parquet", [], {"exact": []})
    with pytest.raises(NotComparable, match="share 0 questions and 1 metrics"):
        compare(now, before, "toy")


def test_what_one_judge_said_nothing_about_is_no_loss(tmp_path: Path) -> None:
    now, before = two(tmp_path)
    ids = {folder: read_answered(folder / "suite-toy.parquet") for folder in (now, before)}
    for folder, answered in ids.items():
        each = [math.nan if folder == now and i % 3 == 0 else 70.0 for i in range(len(answered))]
        write_answered(folder / "suite-toy.parquet", answered, {"judge": each})
    found = compare(now, before, "toy")
    (line,) = found.lines
    assert (line.now, line.before, line.interval) == (70.0, 70.0, (0.0, 0.0)) and found.flips == []
    assert line.unparseable[0] > 5 and line.unparseable[1] == 0
    scored = Results.load(now).scores("toy/judge")
    assert {score for _, score in scored.values()} == {70.0} and len(scored) == len(ids[now]) - line.unparseable[0]
