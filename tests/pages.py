"""What README, docs and docstrings tell a reader to type."""

import ast
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

from tests.house import MODULES

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text()


def commands(path: Path) -> list[list[str]]:
    """Commands of the ``sh`` blocks, continued lines joined and comments cut."""
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", path.read_text(), flags=re.DOTALL)
    typed = re.findall(r"^\$ ((?:.*\\\n)*.*)", path.read_text(), flags=re.MULTILINE)
    lines = "\n".join([*blocks, *typed]).replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if "<<" not in line]
    return [command for command in words if command]


def docstring_commands(path: Path) -> list[list[str]]:
    """Commands in a module's docstring: indented lines that start a program; what stands behind two spaces is prose."""
    text = (ast.get_docstring(ast.parse(path.read_text())) or "").replace("\\\n", " ")
    starts = r"^    ((?:\w+=\S+ +)*(?:torchrun|python|af-pipelines) .*)$"
    lines = [re.sub(r"(?<=\S) {2,}(?=-)", " ", line) for line in re.findall(starts, text, flags=re.MULTILINE)]
    return [re.split(r" {2,}", line)[0].replace("[", " ").replace("]", " ").split() for line in lines]


MODULE_FILES = sorted(set(MODULES.values()) | set((ROOT / "tests").rglob("*.py")))
COMMANDS = [(path.name, command) for path in DOCS for command in commands(path)]
COMMANDS += [(str(path.relative_to(ROOT)), command) for path in MODULE_FILES for command in docstring_commands(path)]


@cache
def help_of(*program: str) -> str:
    """What ``--help`` prints; it must come without a GPU, data or network."""
    environment = os.environ | {"COLUMNS": "1000", "PYTHONPATH": f"{ROOT}:{ROOT / 'kubeflow'}"}
    done = subprocess.run(
        [sys.executable, *program, "--help"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
