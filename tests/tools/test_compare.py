"""The page of two measurements is written, and goes to the run in MLflow."""

from pathlib import Path

import pytest

from tests.evaluate.two_runs import two
from tools.compare import main


def test_a_page_is_written_and_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now, before = two(tmp_path)
    for name in ("abc", "unborn"):
        (now / "tracking" / name).mkdir(parents=True)
    (now / "tracking/abc/run.json").write_text("{}")
    assert main([str(now), str(before), "--root", str(tmp_path)]) == 0
    assert "9 won, 1 lost; left out: 1" in capsys.readouterr().out
    assert "<audio" in (now / "compared.html").read_text()
    spools = {name: (now / "tracking" / name).rglob("*.jsonl") for name in ("abc", "unborn")}
    sent = {name: "".join(file.read_text() for file in files) for name, files in spools.items()}
    assert "compared.html" in sent["abc"] and not sent["unborn"]
    assert main([str(now), str(tmp_path / "nowhere")]) == 2
    assert "share no suite-NAME.parquet; measure both" in capsys.readouterr().err
