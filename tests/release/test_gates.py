"""Every kind of gate: what passes, what is refused and by how much, and gates that cannot be used."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_af.config import ConfigError
from megatron_af.release.gates import GateConfig, Gates, Trials, Verdict, bootstrap_lower_bound, judge, read_gates
from megatron_af.runs.results import Results, Sample

GOOD = {"overall/audio": 52.0, "overall/exchanged": 26.0, "skills/what/n": 60.0, "skills/when/n": 40.0}


def results(correct: np.ndarray | None = None, *, groups: int = 100, **metrics: float) -> Results:
    scores = np.zeros(0) if correct is None else correct
    samples = tuple(
        Sample(id=f"{i}", group=f"{i % groups}", scores={"correct": float(score)}) for i, score in enumerate(scores)
    )
    return Results(metrics={**GOOD, **metrics}, samples=samples)


def not_asked_for(*_: object) -> Any:
    raise AssertionError("no gate asks for it")


def verdict(gate: GateConfig, candidate: Results, champion: Results | None = None) -> list[Verdict]:
    return judge(Gates(gates={"it": gate}), candidate, champion, Trials(load=not_asked_for, export=not_asked_for))


@pytest.mark.parametrize(
    ("gate", "passed", "says"),
    [
        (GateConfig(metric="overall/audio", min=50), [True], "overall/audio = 52"),
        (GateConfig(metric="overall/audio", min=60), [False], "expected at least 60: short by 8"),
        (GateConfig(metric="overall/audio", max=50), [False], "expected at most 50: too much by 2"),
        (GateConfig(metric="overall/audio", over="overall/exchanged", min=20), [True], "= 26"),
        (GateConfig(metric="overall/audio", over="overall/exchanged", min=40), [False], "short by 14"),
        (GateConfig(metric="skills/*/n", min=50), [True, False], "skills/when/n = 40, expected at least 50"),
    ],
)
def test_bounds(gate: GateConfig, passed: list[bool], says: str) -> None:
    verdicts = verdict(gate, results())
    assert [v.passed for v in verdicts] == passed
    assert says in verdicts[-1].finding


def test_a_number_that_is_none_passes_no_bound() -> None:
    (found,) = verdict(GateConfig(metric="overall/audio", max=50), results(**{"overall/audio": float("nan")}))
    assert not found.passed


def test_the_champion_must_not_be_missed() -> None:
    random = np.random.default_rng(1)
    champion = (random.random(2000) < 0.5).astype(float)
    better, worse = champion.copy(), champion.copy()
    better[random.choice(np.flatnonzero(champion == 0), 100, replace=False)] = 1
    worse[random.choice(np.flatnonzero(champion == 1), 100, replace=False)] = 0
    gate = GateConfig(score="correct", margin=0.02)

    for scores, passed in ((champion, True), (better, True), (worse, False)):
        (found,) = verdict(gate, results(scores), results(champion))
        assert found.passed is passed, found.finding
    assert "-0.05 against the champion over 2000 samples" in found.finding
    said = re.search(r"confidence at least (\S+), expected at least -0\.02: short by (\S+)$", found.finding)
    assert said and float(said[2]) == pytest.approx(-0.02 - float(said[1]), abs=1e-4)
    (found,) = verdict(gate, results(champion), None)
    assert found.passed and "no champion" in found.finding


def test_too_few_samples_do_not_prove_that_nothing_is_lost() -> None:
    """Equal means, but 20 samples that changed both ways leave room for a loss."""
    champion = np.tile([1.0, 0.0], 10)
    gate = GateConfig(score="correct", margin=0.02)
    (found,) = verdict(gate, results(1 - champion), results(champion))
    assert not found.passed


def test_other_samples_are_no_comparison() -> None:
    (found,) = verdict(GateConfig(score="correct"), results(np.ones(10)), results(np.ones(12)))
    assert not found.passed and "0 that it lacks and 2 missing" in found.finding


def test_other_questions_under_the_same_names_are_no_comparison() -> None:
    ours, theirs = results(np.ones(3)), results(np.ones(3))
    gate = GateConfig(score="correct", margin=1.0)
    for asked, passed in ((("test (sha256:1)", "test (sha256:2)"), False), (("", "test (sha256:2)"), True)):
        (found,) = verdict(gate, replace(ours, asked=asked[0]), replace(theirs, asked=asked[1]))
        assert found.passed is passed
        assert passed or "measured on test (sha256:1), the champion on test (sha256:2)" in found.finding


def test_the_bootstrap_bound_is_the_textbook_one() -> None:
    """For independent samples the bound of the mean is about mean - 1.645 standard errors."""
    differences = np.random.default_rng(2).normal(0.1, 1.0, size=4000)
    bound = bootstrap_lower_bound(differences, np.arange(4000), 0.95)
    np.testing.assert_allclose(bound, differences.mean() - 1.645 * differences.std() / np.sqrt(4000), atol=2e-3)


def test_samples_of_one_group_do_not_count_as_many() -> None:
    differences = np.repeat(np.random.default_rng(3).normal(0.0, 1.0, size=50), 40)
    apart = bootstrap_lower_bound(differences, np.arange(2000), 0.95)
    together = bootstrap_lower_bound(differences, np.repeat(np.arange(50), 40), 0.95)
    assert together < 4 * apart < 0


@pytest.mark.parametrize(
    ("load_test", "passed", "says"),
    [
        (lambda: (1.5, ""), True, "answers in 1.50 s"),
        (lambda: (3.0, ""), False, "too slow by 1.00"),
        (lambda: (0.0, "FileNotFoundError: weights"), False, "does not answer: FileNotFoundError: weights"),
    ],
)
def test_the_served_model_has_to_answer(load_test: Callable[[], tuple[float, str]], passed: bool, says: str) -> None:
    trials = Trials(load=load_test, export=not_asked_for)
    (found,) = judge(Gates(gates={"serves": GateConfig(answer_seconds=2)}), results(), None, trials)
    assert found.passed is passed and says in found.finding


@pytest.mark.parametrize(
    ("trouble", "says"), [("", "exported, it gives the same 8 answers"), ("2 of 8 differ", "2 of 8 differ")]
)
def test_the_exported_folder_has_to_answer_alike(trouble: str, says: str) -> None:
    asked: list[int] = []
    trials = Trials(load=not_asked_for, export=lambda questions: asked.append(questions) or trouble)
    (found,) = judge(Gates(gates={"exports": GateConfig(export_answers=8)}), results(), None, trials)
    assert found.passed is (trouble == "") and found.finding == says and asked == [8]


def test_no_evaluation_is_refused() -> None:
    (found,) = verdict(GateConfig(answer_seconds=1), Results(metrics={}))
    assert not found.passed and "no evaluation" in found.finding


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        (GateConfig(metric="overall/audi", min=1), r"gates\.it\.metric: nobody logs overall/audi; did you mean"),
        (GateConfig(metric="overall/audio", over="overal/exchanged", min=1), r"gates\.it\.over: nobody logs"),
        (GateConfig(score="corect"), r"gates\.it\.score: nobody logs corect; did you mean correct"),
    ],
)
def test_a_gate_on_what_nobody_logs_is_a_mistake(gate: GateConfig, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        verdict(gate, results(np.ones(3)))


def test_a_file_of_gates_says_all_its_mistakes_at_once(tmp_path: Path) -> None:
    file = tmp_path / "gates.yaml"
    file.write_text(
        "gates:\n"
        "  a: {metric: x}\n"
        "  b: {metric: x, score: y, min: 1}\n"
        "  c: {metric: x, min: 3, max: 2}\n"
        "  d: {score: y, margin: -1, confidence: 1.5}\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_gates(str(file))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "gates.a", "gates.b", "gates.c", "gates.d", "gates.d",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"registry\.gates"):
        read_gates("")
