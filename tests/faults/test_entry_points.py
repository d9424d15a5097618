"""The short form of ``tests/faults/entry_points.py``, and that it finds what it is for."""

import importlib
import random
from pathlib import Path

import pytest

from megatron_af.config.loading import CONFIGS
from tests.faults import entry_points
from tests.faults.entry_points import COMMANDS, broken


def test_every_command_is_tried() -> None:
    tools = {path.stem for path in (CONFIGS.parent / "tools").glob("*.py")}
    assert tools == {name for name in COMMANDS if "." not in name}


def test_the_same_seed_breaks_the_same(tmp_path: Path) -> None:
    seen = []
    for seed in (3, 3, 4):
        (tmp_path / "config.yaml").write_text("a: {b: 1, c: [2, 3]}\n")
        seen.append(broken(random.Random(seed), tmp_path, ["--config", "config.yaml"]))
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.slow
def test_every_broken_command_ends_with_a_sentence_and_a_code_of_ours() -> None:
    shown: list[str] = []
    assert not entry_points.run(len(COMMANDS), 0, show=shown.append), "\n".join(shown)


@pytest.mark.slow
def test_a_command_that_raises_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> int:
        raise KeyError("parts")

    monkeypatch.setattr(importlib.import_module("report"), "main", main)
    shown: list[str] = []
    assert entry_points.run(2, 0, "report", shown.append)["report"] == 2
    assert "KeyError: 'parts'" in shown[0]
