"""Runs the notebooks of docs/examples as Jupyter would, without Jupyter: what their cells use of it is small.

    python -m tests.notebooks             # all of them anew, in a new folder; what they print is written into them
    python -m tests.notebooks FOLDER '{"encoder": {"SETTINGS": "…"}}'     # smaller, into FOLDER/told.json

A cell is Python, whose last line's value is shown; a line that begins with ``!`` is a command, with ``{NAME}`` filled
in; ``%%writefile FILE`` keeps the rest of a cell. The cell with the tag ``parameters`` holds what a test makes smaller.
"""

import ast
import contextlib
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/examples"
ORDER = ("your_own_sound", "chat", "few_shot", "export", "benchmark", "encoder")
"""The first one leaves the trained run that the others use."""

type Notebook = dict[str, Any]


def read(name: str) -> Notebook:
    notebook: Notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    return notebook


def code_cells(notebook: Notebook) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source_digest(notebook: Notebook) -> str:
    """Of all that runs: outputs beside another one are not of these cells."""
    return hashlib.sha256("\0".join("".join(cell["source"]) for cell in code_cells(notebook)).encode()).hexdigest()


def prepare(root: Path) -> None:
    """A folder in which commands work as they do in a checkout."""
    for name in ("tools", "configs"):
        (root / name).symlink_to(ROOT / name)


def run(notebook: Notebook, root: Path, **smaller: Any) -> Iterator[str]:
    """What each cell prints, cell by cell. Changes the working directory.

    Raises:
        AssertionError: a command failed.
        Exception: whatever a cell raises.
    """
    os.chdir(root)
    scope: dict[str, Any] = {"__name__": "__main__"}
    for cell in code_cells(notebook):
        source = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", ()):
            for name, value in smaller.items():
                source, found = re.subn(rf"^{name} = .*(?:\n .*|\n\))*", f"{name} = {value!r}", source, flags=re.M)
                assert found == 1, f"{name} is no parameter"
        yield _run_cell(source, scope)


def _run_cell(source: str, scope: dict[str, Any]) -> str:
    if source.startswith("%%writefile "):
        line, _, text = source.partition("\n")
        file = Path(line.removeprefix("%%writefile ").strip())
        file.write_text(text + "\n")
        return f"Writing {file}\n"
    told = io.StringIO()
    source = re.sub(r"^!((?:.*\\\n)*.*)", lambda line: f"_shell({line[1]!r})", source, flags=re.MULTILINE)
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    scope["_shell"] = lambda command: told.write(_shell(command, scope)) and None
    with contextlib.redirect_stdout(told):
        exec(compile(tree, "cell", "exec"), scope)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), scope)
            if value is not None:
                print(repr(value))
    return told.getvalue()


def _shell(command: str, scope: Mapping[str, Any]) -> str:
    command = re.sub(r"\{(\w+)\}", lambda name: str(scope[name[1]]), command)
    typed = command.replace(".venv/bin", str(Path(sys.executable).parent))
    # Tools of one process take both cores; threads that spin while they wait would cost more than they do.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", typed], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
    return done.stdout


def try_all(root: Path, smaller: Mapping[str, Mapping[str, Any]]) -> None:
    """What each notebook prints, or how it fails, by name; in a process of its own, for tests fork."""
    prepare(root)
    told = {}
    for name in ORDER:
        try:
            told[name] = {"said": "".join(run(read(name), root, **smaller.get(name, {})))}
        except BaseException:
            told[name] = {"failed": traceback.format_exc()}
    (root / "told.json").write_text(json.dumps(told))


def main() -> None:
    if sys.argv[1:]:
        try_all(Path(sys.argv[1]).resolve(), json.loads(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        prepare(root)
        for name in ORDER:
            notebook = read(name)
            for number, (cell, told) in enumerate(zip(code_cells(notebook), run(notebook, root), strict=True), 1):
                print(told, end="", flush=True)
                assert str(root) not in told and str(ROOT) not in told, "a path of this machine"
                cell["execution_count"] = number
                lines = told.splitlines(keepends=True)
                cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": lines}] if told else []
            notebook["metadata"]["megatron_af"] = {"ran": source_digest(notebook)}
            text = json.dumps(notebook, indent=1, ensure_ascii=False)
            (FOLDER / f"{name}.ipynb").write_text(text + "\n")


if __name__ == "__main__":
    main()
