"""The evaluation of a stage refuses what cannot work before it starts any process group."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import Config, DataConfig, DatasetConfig, StageConfig
from megatron_af.config.loading import to_yaml
from tests.retrieval.toy import retrieval_config, write_checkpoint
from tools.evaluate import main


def test_mistakes_about_a_contrastive_stage_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.yaml"
    config = replace(retrieval_config(tmp_path), stage="clap")
    file.write_text(to_yaml(config))

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "--config", str(file), *arguments])
        return main(), capsys.readouterr().err

    elsewhere = ("--output", str(tmp_path / "out"), "--rows")
    code, error = run(*elsewhere, "test")
    assert code == 2 and "stage = clap: has no checkpoint in" in error
    write_checkpoint(config, "a")
    code, error = run("--output", "/dev/null/out", "--rows", "test")
    assert code == 2 and error.splitlines() == ["/dev/null/out: Not a directory"], "before anything is measured"
    code, error = run(*elsewhere, "test", "data.datasets.test.manifest=gone.jsonl")
    assert code == 2 and "gone.jsonl" in error and "data.datasets.test.manifest" in error
    code, error = run(*elsewhere, "tset", "data.tokenizer=nowhere.json")
    assert code == 2 and "evaluation: 'tset' is not in data.datasets; did you mean test?" in error
    code, error = run("stage=tune", "curriculum.tune.evaluatoin=[test]")
    assert code == 2 and "did you mean curriculum.tune.evaluation" in error
    code, error = run("--shots", "2", "--from", "train")
    assert code == 2 and "stage clap is contrastive and reads no examples; leave --shots out" in error


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--rows", "test"], "need --output FOLDER"),
        (["--rows", "test", "--output", "x", "--shots", "2", "--from", "test"], "go without --shots"),
        (["--rows", "tests", "--output", "x"], "'tests' is not in data.datasets"),
        (["--checkpoint", "gone", "--output", "x", "--rows", "test"], "--checkpoint gone: neither a stage nor"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    wrong: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = {"test": DatasetConfig(manifest="test.jsonl")}
    top = tmp_path / "top.yaml"
    top.write_text(to_yaml(Config(name="t", data=DataConfig(datasets=sets), curriculum={"stage": StageConfig()})))
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--config", str(top), *wrong, "stage=stage"])
    assert main() == 2
    assert said in capsys.readouterr().err


def test_a_benchmark_is_asked_of_a_stage_that_calibrates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a stage calibrates on goes with its own rows, which are not measured here."""
    stage = StageConfig(evaluation=("test",), calibrate="test")
    sets = {"test": DatasetConfig(manifest="test.jsonl")}
    top = tmp_path / "top.yaml"
    top.write_text(to_yaml(Config(name="t", data=DataConfig(datasets=sets), curriculum={"stage": stage})))
    arguments = ["evaluate.py", "--config", str(top), "--suite", "esc50", "--output", str(tmp_path), "stage=stage"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert main() == 2, "there is no checkpoint"
    assert "calibrate" not in capsys.readouterr().err
