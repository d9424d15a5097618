"""The notebooks of docs/examples run, at a size that learns nothing, and hold what their own cells printed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.notebooks import FOLDER, ORDER, ROOT, code_cells, read, run, source_digest

SMALLER = {
    "TAKES": 8,
    "SETTINGS": "launch.processes_per_node=1 retrieval.stage=clap retrieval.datasets=[train] "
    "model.encoder.embed_dim=16 model.encoder.depths=[1,1] model.encoder.heads=[2,2] model.transform.heads=2 "
    "model.transform.ffn=64 model.lm.hidden=64 model.lm.ffn=96 curriculum.answer.max_text_tokens=96 "
    "curriculum.clap.steps=2 curriculum.answer.steps=2 curriculum.clap.global_batch_samples=4 "
    "curriculum.clap.micro_batch_samples=2 curriculum.answer.global_batch_samples=4 "
    "curriculum.answer.micro_batch_samples=2 evaluation.max_answer_tokens=4 data.prepare.workers=1",
}
FEWER_STEPS = {"SETTINGS": "curriculum.clap.steps=2"}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What each notebook printed, or how it failed; all run in one process."""
    root = tmp_path_factory.mktemp("notebooks")
    smaller = json.dumps({ORDER[0]: SMALLER, "encoder": FEWER_STEPS})
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_MODULES_CACHE": str(root / "modules")}
    command = [sys.executable, "-m", "tests.notebooks", str(root), smaller]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=900)
    found: dict[str, dict[str, str]] = json.loads((root / "told.json").read_text())
    return found


SAYS = {
    "your_own_sound": "look and listen: runs/sounds/report.html",
    "chat": "[data/recordings/sounds/chirp_0.wav: ",
    "few_shot": "examples from train",
    "export": "model.safetensors",
    "benchmark": "brevity",
    "encoder": "zero_shot: accuracy",
}


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", ORDER)
def test_a_notebook_runs(name: str, told: dict[str, dict[str, str]]) -> None:
    assert "failed" not in told[name], told[name]["failed"][-3000:]
    assert SAYS[name] in told[name]["said"]


@pytest.mark.parametrize("name", ORDER)
def test_outputs_are_those_of_the_cells_beside_them(name: str) -> None:
    notebook = read(name)
    assert notebook["metadata"]["megatron_af"]["ran"] == source_digest(notebook), "python -m tests.notebooks"
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell["outputs"] for cell in cells)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-zA-Z0-9-_]{1,64}", one) for one in ids)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)


def test_every_notebook_is_run() -> None:
    assert sorted(ORDER) == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def test_what_a_cell_raises_or_a_command_refuses_ends_a_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def notebook(*cells: str) -> dict[str, object]:
        return {"cells": [{"cell_type": "code", "metadata": {}, "source": [cell]} for cell in cells]}

    assert list(run(notebook("x = 2\nprint(x)", "x + 1", "%%writefile a.txt\nhello"), tmp_path)) == [
        "2\n", "3\n", "Writing a.txt\n",
    ]  # fmt: skip
    assert (tmp_path / "a.txt").read_text() == "hello\n"
    with pytest.raises(NameError):
        list(run(notebook("gone()"), tmp_path))


@pytest.mark.slow
def test_a_command_fills_in_names_and_its_failure_ends_a_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parameters = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["WORD = (\n    'long'\n)"]}
    said = {"cell_type": "code", "metadata": {}, "source": ["!echo {WORD} \\\n    behind\nprint(1)"]}
    refused = {"cell_type": "code", "metadata": {}, "source": ["!.venv/bin/python -c 'exit(3)' | cat"]}
    assert list(run({"cells": [parameters, said]}, tmp_path)) == ["", "long behind\n1\n"]
    assert list(run({"cells": [parameters, said]}, tmp_path, WORD="short")) == ["", "short behind\n1\n"]
    with pytest.raises(AssertionError, match="exit"):
        list(run({"cells": [refused]}, tmp_path))
