"""A folder that takes nothing is told of before anything is computed, by each tool that writes."""

import os
import sys
from pathlib import Path

import pytest

from tests.faults.kills import prepare

ROOT = Path(__file__).parents[2]
NOWHERE = "/sys/megatron-af"
"""Not even root makes a folder there."""


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no sysfs here")
@pytest.mark.parametrize("tool", ["pretrain_af", "run_curriculum"])
def test_an_output_that_takes_nothing_is_one_sentence(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    module = __import__(tool)
    monkeypatch.setattr(sys, "argv", [tool, "--config", str(prepare(tmp_path)), f"output={NOWHERE}"])
    assert module.main() == 2
    (told,) = capfd.readouterr().err.splitlines()
    refused = ("Operation not permitted", "Read-only file system", "Permission denied")  # the last to who is not root
    assert told.startswith(f"{NOWHERE}: ") and told.endswith(refused)
    assert not os.path.lexists(NOWHERE)
