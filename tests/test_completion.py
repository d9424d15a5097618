"""A TAB offers what the tools know, and nothing behind other programs."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_af.completion import WRAPPERS, script, words
from megatron_af.config.loading import describe
from tests.pages import help_of

TOOLS = Path(__file__).parents[1] / "tools"
BASH = shutil.which("bash")
PROGRAMS = sorted(path.name for path in TOOLS.glob("*.py") if path.name != "__init__.py")


def offered(line: str) -> list[str]:
    """What bash would show at the end of a line."""
    assert BASH
    typed = f'COMP_LINE={line!r}; COMP_POINT={len(line)}; _megatron_af; printf "%s\\n" "${{COMPREPLY[@]}}"'
    command = [BASH, "--norc", "-c", f"{script(TOOLS)}\n{typed}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.skipif(not BASH, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("python tools/start.py --", ["--dry-run", "--from", "--help"]),
        (".venv/bin/python /x/tools/start.py my_sounds --d", ["--dry-run"]),
        ("python tools/prepare_data.py pre", ["prepare", "precision="]),
        ("torchrun --nproc_per_node 2 tools/pretrain_af.py --config a.yaml precision", ["precision="]),
        ("torchrun --nproc_per_node 2 tools/pretrain_clap.py --config a.yaml precision=", ["bf16", "fp32"]),
        ("python tools/pretrain_af.py model.lm.hid", ["model.lm.hidden="]),
        ("python tools/evaluate.py --config con", []),
        ("python other.py --", []),
        ("python -m pytest mod", []),
    ],
)
def test_what_is_completed(line: str, shown: list[str]) -> None:
    assert offered(line) == shown


def test_every_key_without_a_name_in_it_is_known() -> None:
    plain = [key for key in re.findall(r"^  (\S+): ", describe(), flags=re.MULTILINE) if "<name>" not in key]
    text = script(TOOLS)
    assert len(plain) > 100 and [key for key in plain if f" {key}=" not in text and f'"{key}=' not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_options_are_those_that_help_names(name: str) -> None:
    """The source is read for them, which must find them all."""
    told = set(re.findall(r"^  (--[\w-]+)", help_of(f"tools/{name}"), flags=re.MULTILINE))
    assert {word for word in words(TOOLS / WRAPPERS.get(name, name)) if word.startswith("--")} == told - {"--help"}
