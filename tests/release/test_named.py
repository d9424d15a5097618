"""A model is named by its folder, or by its place in the registry."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_af.release import served
from megatron_af.release.named import named, registered_name


def test_a_path_is_a_path_and_an_address_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "release_of", lambda address: Path("/releases") / address.removeprefix("models:/"))
    assert named("runs/demo") == Path("runs/demo")
    assert named("models:/demo@champion") == Path("/releases/demo@champion")


def test_a_registered_model_keeps_its_name_over_its_versions() -> None:
    assert registered_name("models:/demo@champion") == registered_name("models:/demo/7") == "demo"
    assert registered_name("runs/demo") == ""


@pytest.mark.slow
def test_a_path_costs_no_import_of_mlflow() -> None:
    program = "import sys; from megatron_af.release.named import named; named('x'); print('mlflow' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "False"
