"""The examples of docs/contributing.md, as a reader would type them, train."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.train import toy_run as tool

pytestmark = pytest.mark.slow
PAGE = (tool.ROOT / "docs" / "contributing.md").read_text()
run_folder = tool.run_folder


def write_examples(folder: Path) -> list[str]:
    """Each Python block into the file that is named last before it."""
    written = []
    for match in re.finditer(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        name = re.findall(r"`(my_package/\w+\.py)`", PAGE[: match.start()])[-1]
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(match[1])
        written.append(name)
    return written


def test_encoder_and_objective_train_together(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = write_examples(run_folder)
    assert names == [f"my_package/{name}.py" for name in ("mean_encoder", "patient", "perplexity")]
    paths = f"{run_folder}:{tool.ROOT}"
    monkeypatch.setattr(tool, "environment", lambda: {**os.environ, "PYTHONPATH": paths})
    model, curriculum = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL))
    encoder, stage = model["model"]["encoder"], curriculum["curriculum"]["align"]
    changes = [
        "name=contributed",
        f"model.encoder.kind={encoder['kind']}",
        f"model.encoder.settings={json.dumps(encoder['settings'])}",
        f"curriculum.align.objective={stage['objective']}",
        "curriculum.align.exit_gate.perplexity.max=1000",
        "curriculum.align.steps=3",
    ]
    assert len(tool.losses(tool.train(run_folder, *changes))) == 3
    result = json.loads((run_folder / "runs/contributed/align/result.json").read_text())
    assert result["perplexity"] > 1 and result["loss"] > 0
    shutil.rmtree(run_folder / "my_package")
