"""``tools/prove.py``: a card for a stage of a configuration, and one sentence for what cannot be proven."""

import json
import sys
from pathlib import Path

import pytest

from megatron_af.config.loading import CONFIGS

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import prove


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "CUDA_DEVICE_MAX_CONNECTIONS"):
        monkeypatch.setenv(name, "")  # and as it was behind the test


@pytest.mark.slow
def test_a_card_of_a_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", str(CONFIGS / "demo_af1.yaml"), "--folder", str(tmp_path), "stage=pretrain"]
    assert prove.main(arguments) == 0
    record = json.loads((tmp_path / "card.json").read_text())
    assert record["holds"] and {finding["layout"] for finding in record["findings"]} == {"DP2", "TP2", "PP2"}
    assert len(record["findings"]) == 9 and record["silent"] == {"pretrain": []}
    assert "every layout computes" in (tmp_path / "card.md").read_text()
    assert "everything holds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "demo.yaml", "stage=tun"], "stage = tun: not in curriculum; did you mean tune?"),
        (["--config", "demo.yaml", "--ranks", "1"], "--ranks 1: give 2 or more"),
        (["--config", "model/demo.yaml", "name=x"], "has no curriculum"),
    ],
)
def test_what_cannot_be_proven(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert prove.main(["--config", str(CONFIGS / arguments[1]), *arguments[2:]]) == 2
    assert message in capsys.readouterr().err
