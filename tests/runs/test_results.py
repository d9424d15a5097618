"""Results are read whole or refused with the place of the mistake."""

import json
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_af.config import Config, StageConfig, WatchConfig
from megatron_af.evaluate.clap import composition, paraphrase_robustness, retrieval, zero_shot
from megatron_af.evaluate.classes import by_class
from megatron_af.evaluate.hearing import Asked, summarise
from megatron_af.evaluate.ranking import mean_average_precision
from megatron_af.runs.digests import recorded_digest
from megatron_af.runs.results import BadResults, Results, bind_results, metric_patterns, result_files, tables
from megatron_af.train.callbacks.meter import Meter
from tests.train.callbacks.measured import measured

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


def test_a_contrastive_stages_numbers_are_a_table_with_intervals(tmp_path: Path) -> None:
    found = {"rows": 3, "zero_shot": {"accuracy": 50.0}, "intervals": {"zero_shot/accuracy": [40.0, 60.0]}}
    (tmp_path / "suite-esc50.json").write_text(json.dumps(found))
    columns, rows = tables(tmp_path)["esc50"]
    assert columns == ["skill", "metric", "value", "from", "to", "unparseable of all"]
    assert rows == [["", "zero_shot/accuracy", 50.0, 40.0, 60.0, None]]
    assert Results.load(tmp_path).metrics == {"esc50/rows": 3.0, "esc50/zero_shot/accuracy": 50.0}


def test_turns_of_conversations_are_in_the_table(tmp_path: Path) -> None:
    (tmp_path / "hearing.json").write_text(json.dumps({"test": {**SCORES, "turns": {"1": {"audio": 5.0, "n": 2}}}}))
    assert tables(tmp_path)["test"][1] == [["what", 54.0, 9], ["turn 1", 5.0, 2], ["overall", 39, 9]]
    with_classes = json.loads((tmp_path / "hearing.json").read_text())
    classes = {"labels": ["cat", "dog"], "counts": [[3, 1, 0], [0, 0, 0]], "recall": {"cat": 75.0}}
    with_classes["test"]["classes"] = {"which one?": classes}
    (tmp_path / "hearing.json").write_text(json.dumps(with_classes))
    columns = ["wanted", "cat", "dog", "something else", "recall"]
    assert tables(tmp_path)["test-which-one-"] == (columns, [["cat", 3, 1, 0, 75.0], ["dog", 0, 0, 0, None]])
    assert Results.load(tmp_path).metrics["test/classes/which one?/recall/cat"] == 75.0


def test_samples_have_scores_and_groups(tmp_path: Path) -> None:
    lines = [{"id": "a#0", "group": "a", "correct": 1, "skill": "what"}, {"id": "b", "correct": False, "cider": 0.4}]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    results = Results.load(tmp_path)
    assert results.scores("correct") == {"a#0": ("a", 1.0), "b": ("b", 0.0)}
    assert results.scores("cider") == {"b": ("b", 0.4)}
    assert results.score_names() == ["cider", "correct"]


FOR_SETS = {f"{kind}/{dataset}" for kind in ("sample_loss", "tokens", "too_long") for dataset in ("a", "b[c]")}


def test_exit_gates_know_what_is_measured() -> None:
    """The names are written down once more, for checks that must not wait for torch."""
    stage = StageConfig(blend={"a": 1.0, "b[c]": 1.0}, evaluation=("test",), watch=WatchConfig(dataset="dev"))
    said = {"skill": "what", "prompt": "", "wanted": "a", "heard": "a", "exchanged": "b", "unsure": False}
    asked = [Asked(row=str(n), turn=n, options=("a", "b"), **said) for n in range(3)]  # type: ignore[arg-type]
    tensors = torch.eye(3)
    clap = {
        "rows": 3,
        "retrieval": retrieval(tensors, tensors),
        "all captions": retrieval(tensors, tensors),
        "paraphrase": paraphrase_robustness(tensors, tensors, [tensors[:1]] * 3),
        "composition": composition(tensors, tensors, [tensors[:1]] * 3, [["order"]] * 3),
        "composition, other audio": composition(tensors, tensors, [tensors[:1]] * 3, [["order"]] * 3),
        "zero_shot": {
            **zero_shot(tensors, tensors, torch.arange(3)),
            "mean_average_precision": mean_average_precision(tensors.bool(), tensors),
        },
    }
    rates = measured(Meter.WARMUP_STEPS + 1)
    heard = summarise(asked) | {"classes": by_class(asked)}
    logged = ("step", "loss", "grad_norm", "learning_rate", "loss/a", "loss/b[c]", "watched/loss")
    steps = dict.fromkeys((*rates, *logged), 1.0)
    for objective, summary, more in (
        ("answer", heard, {"tokens", "chance_loss", "watched/sure", "gate_attn/0", "gate_ffn/12", *FOR_SETS}),
        ("contrastive", clap, {"samples", "temperature"}),
    ):
        known = metric_patterns(replace(stage, objective=objective))
        named = {*numbers({"test": summary}), *steps, *more}
        assert {name for name in named if not any(fnmatchcase(name, pattern) for pattern in known)} == set()
        matched = {pattern for pattern in known if any(fnmatchcase(name, pattern) for name in named)}
        assert set(known) - matched == set()
        unwatched = metric_patterns(replace(stage, objective=objective, watch=WatchConfig()))
        assert unwatched == [pattern for pattern in known if not pattern.startswith("watched/")]


def numbers(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{name}/{key}" if name else key)
    elif isinstance(value, int | float):
        yield name


def test_no_evaluation_is_empty(tmp_path: Path) -> None:
    assert Results.load(tmp_path) == Results(metrics={})


@pytest.mark.parametrize("line", ["{", '{"correct": 1}', "[1]"])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "answers.jsonl").write_text('{"id": "a"}\n' + line + "\n")
    with pytest.raises(BadResults, match=r"answers\.jsonl:2"):
        Results.load(tmp_path)


def evaluated(tmp_path: Path, weights: str) -> Config:
    """A stage with a checkpoint of these weights and results of them."""
    config = Config(name="demo", output=str(tmp_path), stage="long", curriculum={"long": StageConfig()})
    folder = config.stage_folder("long")
    checkpoint = folder / "checkpoints" / f"step_{len(weights):08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint.json").write_text('{"parts": {}}')
    (checkpoint / "weights").write_text(weights)
    (checkpoint.parent / "latest").write_text(checkpoint.name)
    (folder / "hearing.json").write_text(json.dumps({"test": SCORES}))
    (folder / "answers.jsonl").write_text('{"id": "a", "right": 1}')
    bind_results(config, [folder / "hearing.json", folder / "answers.jsonl"])
    return config


def test_results_are_of_the_weights_that_were_measured(tmp_path: Path) -> None:
    config = evaluated(tmp_path, "one")
    folder = config.stage_folder("long")
    weights = recorded_digest(folder / "checkpoints/step_00000003")
    assert Results.load(folder, weights) == Results.load(folder)
    record = json.loads((folder / "measured.json").read_text())
    assert record["weights"] == weights and record["code"].startswith("0.") and "sha256:" in record["asked"]

    with pytest.raises(BadResults, match=r"hearing\.json is of step_00000003 .*, not of the one with sha256:0000"):
        Results.load(folder, "sha256:0000")
    (folder / "answers.jsonl").write_text('{"id": "a", "right": 0}')
    with pytest.raises(BadResults, match=r"answers\.jsonl is not what was measured"):
        Results.load(folder, weights)
    (folder / "measured.json").unlink()
    with pytest.raises(BadResults, match="names no checkpoint"):
        Results.load(folder, weights)


def test_results_of_an_earlier_checkpoint_are_not_vouched_for(tmp_path: Path) -> None:
    config = evaluated(tmp_path, "one")
    folder = config.stage_folder("long")
    (folder / "clap-old.json").write_text("{}")
    bind_results(config, [folder / "clap-old.json"])
    assert set(json.loads((folder / "measured.json").read_text())["files"]) == {
        "hearing.json",
        "answers.jsonl",
        "clap-old.json",
    }
    evaluated(tmp_path, "other")
    with pytest.raises(BadResults, match=r"clap-old\.json is not what was measured"):
        Results.load(folder, recorded_digest(folder / "checkpoints/step_00000005"))


def test_results_on_other_settings_are_not_vouched_for(tmp_path: Path) -> None:
    """As where an evaluation with other settings is stopped between data sets and benchmarks."""
    config = evaluated(tmp_path, "one")
    folder = config.stage_folder("long")
    (folder / "suite-toy.json").write_text("{}")
    bind_results(config, [folder / "suite-toy.json"])
    weights = recorded_digest(folder / "checkpoints/step_00000003")
    assert Results.load(folder, weights)
    longer = replace(config, evaluation=replace(config.evaluation, max_answer_tokens=7))
    bind_results(longer, [folder / "hearing.json", folder / "answers.jsonl"])
    with pytest.raises(BadResults, match=r"suite-toy\.json is not what was measured .* or remove the file"):
        Results.load(folder, weights)
    bind_results(longer, [folder / "suite-toy.json"])
    assert Results.load(folder, weights)
