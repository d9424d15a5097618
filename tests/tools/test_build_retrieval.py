"""The retrieval command refuses what cannot work before it starts any process group."""

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config.loading import to_yaml
from tests.retrieval.toy import retrieval_config
from tools import build_retrieval


def test_mistakes_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = retrieval_config(tmp_path)
    file = tmp_path / "c.yaml"
    file.write_text(to_yaml(replace(config, stage="")))

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["build_retrieval.py", "index", "--config", str(file), *arguments])
        return build_retrieval.main(), capsys.readouterr().err

    code, error = run("retrieval.stage=tune", "data.datasets.knn.neighbours.of=test")
    assert code == 2
    assert "retrieval.stage = 'tune': no contrastive stage of curriculum; known: clap" in error
    assert "data.datasets.knn.neighbours.of = test: curriculum.clap is evaluated on it" in error
    code, error = run("retrieval.stag=clap")
    assert (code, "did you mean retrieval.stage" in error) == (2, True)
