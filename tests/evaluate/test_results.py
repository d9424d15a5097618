"""Results are read whole or refused with the place of the mistake."""

import json
from pathlib import Path

import pytest

from megatron_af.evaluate.results import BadResults, Results, result_files, tables

SCORES = {"skills": {"what": {"audio": 54.0, "n": 9}}, "overall": {"audio": 39, "n": 9, "interval": [1, 2]}}


def test_numbers_at_any_depth_are_metrics(tmp_path: Path) -> None:
    (tmp_path / "hearing.json").write_text(json.dumps({"test": SCORES}))
    (tmp_path / "clap-captions.json").write_text(json.dumps({"retrieval": {"r1": 0.5}, "rows": 40}))
    assert Results.load(tmp_path).metrics == {
        "test/skills/what/audio": 54.0,
        "test/skills/what/n": 9.0,
        "test/overall/audio": 39.0,
        "test/overall/n": 9.0,
        "captions/retrieval/r1": 0.5,
        "captions/rows": 40.0,
    }
    assert [file.name for file in result_files(tmp_path)] == ["hearing.json", "clap-captions.json"]


def test_scores_by_skill_are_a_table(tmp_path: Path) -> None:
    (tmp_path / "hearing.json").write_text(json.dumps({"test": SCORES}))
    (tmp_path / "clap-captions.json").write_text(json.dumps({"retrieval": {"r1": 0.5}}))
    assert tables(tmp_path) == {"test": (["skill", "audio", "n"], [["what", 54.0, 9], ["overall", 39, 9]])}


def test_samples_have_scores_and_groups(tmp_path: Path) -> None:
    lines = [{"id": "a#0", "group": "a", "correct": 1, "skill": "what"}, {"id": "b", "correct": False, "cider": 0.4}]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    results = Results.load(tmp_path)
    assert results.scores("correct") == {"a#0": ("a", 1.0), "b": ("b", 0.0)}
    assert results.scores("cider") == {"b": ("b", 0.4)}
    assert results.score_names() == ["cider", "correct"]


def test_no_evaluation_is_empty(tmp_path: Path) -> None:
    assert Results.load(tmp_path) == Results(metrics={})


@pytest.mark.parametrize("line", ["{", '{"correct": 1}', "[1]"])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "answers.jsonl").write_text('{"id": "a"}\n' + line + "\n")
    with pytest.raises(BadResults, match=r"answers\.jsonl:2"):
        Results.load(tmp_path)
