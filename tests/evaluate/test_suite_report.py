"""The numbers of a benchmark, with intervals, skills, wordings and the distance to published ones."""

import io
import math

import pytest
from rich.console import Console

from megatron_af.config import ImportConfig
from megatron_af.evaluate.answered import Answered
from megatron_af.evaluate.metrics.base import Scores, percent
from megatron_af.evaluate.suite_report import Measured, flips, report_of, suite_table, with_published
from megatron_af.runs.benchmarks import Benchmark, Published

ANSWERED = [
    Answered(id=str(i), group=str(i), skill="ab"[i % 2], prompt="?", references=("x",), answers=("x" if i else None,))
    for i in range(40)
]
MEASURED = Measured(
    scores={
        "match": percent([None, 1.0, 0.0, 1.0] * 10),
        "cider": Scores(value=0.9, each=[0.5, 1.0] * 20, notes={"words": 7}),
        "map": Scores(value=31.5),
    },
    wordings={"match": [50.0, 45.0, 20.0]},
    skipped={"fense": "needs a download"},
)


def test_every_number_has_its_interval_in_its_own_unit() -> None:
    report = report_of(ANSWERED, MEASURED)
    assert (report["n"], report["too_long"], report["match"], report["map"]) == (40, 1, 50.0, 31.5)
    low, high = report["intervals"]["match"]
    assert 30 < low < 50 < high < 70 and report["unparseable"] == {"match": 10, "cider": 0}
    low, high = report["intervals"]["cider"]
    assert 0.75 < low < 0.9 < high < 1.05, "a corpus's number is not the mean of its sentences'"
    assert report["skills"] == {
        "a": {"match": 0.0, "cider": pytest.approx(0.6), "n": 20},
        "b": {"match": 100.0, "cider": pytest.approx(1.2), "n": 20},
    }
    assert "map" not in report["intervals"] and report["notes"] == {"cider": {"words": 7}}
    assert report_of([], Measured(scores={})) == {"n": 0}


def test_distance_to_published_numbers_and_what_was_skipped_are_told() -> None:
    source = ImportConfig(format="csv", path="x")
    paper = [
        Published(model="P", metric="match", value=60.0, source="arXiv 1, table 2"),
        Published(model="P", metric="skills/a/match", value=10.0, source="arXiv 1, table 3"),
        Published(model="P", metric="judge", value=64.0, source="arXiv 1"),
    ]
    benchmark = Benchmark(title="x", source=source, metrics=("match",), published=tuple(paper))
    report = with_published(report_of(ANSWERED, MEASURED) | {"left_out": {"missing": 3}}, benchmark)
    assert [line.get("distance") for line in report["published"]] == [-10.0, -10.0, None]
    console = Console(file=io.StringIO(), width=140)
    console.print(suite_table(report, "toy"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("45, 20", "missing: 3", "fense skipped: needs a download", "P match 60, here -10 (arXiv 1, table 2)",
                  "P judge 64 (arXiv 1)", "map", "too long to be asked: 1"):  # fmt: skip
        assert words in text


def test_measurements_of_two_kinds_are_put_together() -> None:
    both = MEASURED | Measured(scores={"nearest": percent([1.0])}, skipped={"judge": "no"})
    assert set(both.scores) == {"match", "cider", "map", "nearest"} and set(both.skipped) == {"fense", "judge"}
    assert set(both.each) == {"match", "cider", "nearest"}


def test_flips_are_of_right_answers_alone_with_an_interval_over_recordings() -> None:
    before = [1.0, 1.0, 1.0, 1.0, 0.0, None]
    after = [0.0, None, 1.0, 1.0, 1.0, 0.0]
    told = flips(before, after, ["a", "a", "b", "b", "c", "c"])
    assert (told["n"], told["rate"]) == (4, 50.0)
    assert told["interval"] == [0.0, 100.0]  # two recordings: both, either or none of them
    assert flips([0.0, None], [1.0, 1.0], ["a", "b"]) == {}


def test_what_nobody_judged_is_in_no_mean_no_skill_and_no_interval() -> None:
    judged = Scores(value=70.0, each=[None, 70.0] * 20, unparseable_counts=False)
    half = Scores(value=70.0, each=[60.0, 80.0, None, None] * 10, unparseable_counts=False)
    measured = Measured(scores={"judge": judged, "judge_detail": half})
    report = report_of(ANSWERED, measured)
    assert report["skills"] == {
        "a": {"judge_detail": 60.0, "n": 20},
        "b": {"judge": 70.0, "judge_detail": 80.0, "n": 20},
    }
    assert report["intervals"]["judge"] == [70.0, 70.0] and report["unparseable"]["judge"] == 20
    assert math.isnan(measured.each["judge"][0]) and measured.each["judge"][1] == 70.0  # type: ignore[arg-type]
