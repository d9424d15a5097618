"""A command answers at once: what it can say without torch, it says before torch is imported."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.house import ROOT

pytestmark = pytest.mark.slow

HEAVY = ("torch", "megatron", "transformers", "mlflow", "sklearn", "pandas", "matplotlib", "nvidia.dali")
"""Each takes a second of a processor, or several, to import."""

ASKED = """
import contextlib, io, json, runpy, sys

heavy, commands = json.load(sys.stdin)
sys.modules.update(dict.fromkeys(heavy))  # whoever imports one now gets a ModuleNotFoundError
sys.path.insert(0, "tools")
answers = []
for sys.argv in commands:
    said, code = io.StringIO(), None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code
        except ImportError as error:
            print(error)
    answers.append([code, said.getvalue()])
print(json.dumps(answers))
"""

TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))
JOBS: dict[str, list[str]] = {"expand_captions": [], "make_skills": [], "mine_clips": ["cut"], "write_dialogues": []}
BEFORE_CONFIG = {
    "build_retrieval": ["index"],
    "convert_checkpoint": ["--from", "weights", "--to", "checkpoints"],
    "evaluate": [],
    "filter_rows": ["--rows", "held", "--draw", "1", "--output", "kept.jsonl"],
    "make_tokenizer": [],
    "plan": ["--gpus", "1"],
    "prepare_data": ["stats"],
    "pretrain_af": [],
    "pretrain_clap": [],
    "run_curriculum": [],
    **JOBS,
}
"""Tools that read a configuration, with what else they want."""


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[int, str]]:
    """Exit code and words of each tool's ``--help``, and of a misspelt key; one process, for all import the same."""
    asked: dict[str, list[str]] = {f"{tool} --help": [f"tools/{tool}.py", "--help"] for tool in TOOLS}
    for tool, before in BEFORE_CONFIG.items():
        config = f"configs/jobs/{tool}.yaml" if tool in JOBS else "configs/demo.yaml"
        asked[f"{tool} key"] = [f"tools/{tool}.py", *before, "--config", config, "sede=1"]
    done = subprocess.run(
        [sys.executable, "-c", ASKED], input=json.dumps([HEAVY, list(asked.values())]),
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found: list[Any] = json.loads(done.stdout)
    return {name: (code, said) for name, (code, said) in zip(asked, found, strict=True)}


@pytest.mark.parametrize("tool", TOOLS)
def test_help_needs_no_torch(tool: str, answers: dict[str, tuple[int, str]]) -> None:
    code, said = answers[f"{tool} --help"]
    assert code == 0 and said.startswith("usage: "), said


@pytest.mark.parametrize("tool", BEFORE_CONFIG)
def test_a_misspelt_key_needs_no_torch(tool: str, answers: dict[str, tuple[int, str]]) -> None:
    code, said = answers[f"{tool} key"]
    assert code == 2 and "sede" in said and "unknown key" in said, said
