"""A benchmark's file is checked whole, and tells what to change."""

from pathlib import Path

import pytest

from megatron_af.config import ConfigError
from megatron_af.config.components import component
from megatron_af.runs.benchmarks import METRIC, METRICS, load_benchmark, name_of, shipped, suite_problems

GOOD = """title: toy
source: {format: csv, path: toy.csv, columns: {audio: a, caption: c}}
metrics: [exact]
"""


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_file_loads_and_its_numbers_have_sources(name: str) -> None:
    benchmark = load_benchmark(name)
    assert benchmark.title and all(other.source.startswith("arXiv 2503.03983") for other in benchmark.published)
    for other in benchmark.published:
        metric = other.metric.rpartition("/")[2]
        assert metric in benchmark.metrics or other.metric.startswith(("all captions/", "zero_shot/"))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_can_be_had(name: str) -> None:
    component(name, METRICS, METRIC)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (GOOD.replace("title", "titel"), "did you mean title?"),
        (GOOD.replace("[exact]", "[exakt]"), "'exakt' is neither built in nor module:Class of your own; did you mean"),
        (GOOD.replace("[exact]", "[os:path]"), "'os:path' is no Metric"),
        (GOOD.replace("[exact]", "[]"), "metrics is empty: name some of exact"),
        (GOOD + "wordings: []", "wordings is empty"),
        (GOOD + "wordings: ['{qestion}']", "wordings[0] has {qestion}, which stands for nothing; did you"),
        (GOOD + "options: [a, b, a]", "options: a stands there more than once"),
        (GOOD + "clean: [first]", "expected first_line or no_full_stop or number_words, got 'first'"),
        (GOOD.replace("csv", "tsv"), "source.format"),
        (GOOD + "published: [{model: a, metric: b, value: much, source: c}]", "expected a number, got 'much'"),
    ],
)
def test_what_is_wrong_is_said(changed: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(changed)
    with pytest.raises(ConfigError) as caught:
        load_benchmark(str(tmp_path / "toy.yaml"))
    assert said in str(caught.value)
    assert any(said in problem for problem in suite_problems([str(tmp_path / "toy.yaml")], "here"))


def test_names_are_looked_for_and_told_apart(tmp_path: Path) -> None:
    assert name_of("a/b/toy.yaml") == "toy"
    assert list(suite_problems(["esc-50"], "curriculum.s.suites")) == [
        "curriculum.s.suites: no benchmark esc-50; did you mean esc50?"
    ]
    (tmp_path / "esc50.yaml").write_text(GOOD)
    (problem,) = suite_problems(["esc50", str(tmp_path / "esc50.yaml")], "here")
    assert problem == "here: two benchmarks are called esc50, and so would their results be; rename a file"
