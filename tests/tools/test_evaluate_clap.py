"""The evaluation of a contrastive stage refuses what cannot work before it starts any process group."""

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config.loading import to_yaml
from tests.retrieval.toy import retrieval_config, write_checkpoint
from tools import evaluate_clap


def test_mistakes_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.yaml"
    config = replace(retrieval_config(tmp_path), stage="clap")
    file.write_text(to_yaml(config))

    def run(rows: str, *overrides: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["evaluate_clap.py", "--config", str(file), "--rows", rows, *overrides])
        return evaluate_clap.main(), capsys.readouterr().err

    code, error = run("test")
    assert code == 2 and "stage = clap: has no checkpoint in" in error
    write_checkpoint(config, "a")
    code, error = run("test", "data.datasets.test.manifest=gone.jsonl")
    assert code == 2 and "gone.jsonl" in error and "data.datasets.test.manifest" in error
    code, error = run("tset", "data.tokenizer=nowhere.json")
    assert code == 2 and "--rows tset: not in data.datasets, which has train, test, knn" in error
    code, error = run("test", "stage=tune", "curriculum.tune.evaluatoin=[test]")
    assert code == 2 and "did you mean curriculum.tune.evaluation" in error and "its objective is answer" in error
