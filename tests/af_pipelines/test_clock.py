"""Time passes in one place, so that every other test of the launcher can pass it."""

import ast
from pathlib import Path

import pytest

from af_pipelines import clock

SOURCES = Path(clock.__file__).parent
OTHERS = {"clock.py": "the place", "commands.py": "watches processes of this machine"}


def test_a_sleep_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    began = clock.now()
    clock.sleep(0.01)
    assert clock.now() - began >= 0.01


def test_nothing_else_waits() -> None:
    waits = {
        path.name
        for path in SOURCES.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import) and "time" in [alias.name for alias in node.names]
    }
    assert waits == set(OTHERS)
