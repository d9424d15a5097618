"""The command tells all, asks a cluster only when it is named, and its exit code is that of the findings."""

from collections.abc import Iterator

import pytest

from af_pipelines import reach
from megatron_af.config import Config
from megatron_af.doctor import examine
from megatron_af.doctor.findings import Finding, State
from tools.doctor import main


def test_findings_and_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    looked: list[Config] = []

    def look(config: Config) -> Iterator[Finding]:
        looked.append(config)
        yield Finding(part="disk", state=State.WORKS, told="much")

    monkeypatch.setattr(examine, "examine", look)
    cluster = Finding(part="cluster", state=State.BROKEN, told="away", fix="wait")
    monkeypatch.setattr(reach, "reach", lambda path: cluster)
    assert main([]) == 0 and "Everything that training needs works." in capsys.readouterr().out
    assert main(["--config", "configs/demo_test.yaml", "output=elsewhere"]) == 0
    assert (looked[1].name, looked[1].output) == ("demo_test", "elsewhere")
    assert main(["--cluster", "configs/cluster/cpu.yaml"]) == 2
    assert "Broken: cluster. Mend that first." in capsys.readouterr().out
