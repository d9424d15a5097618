"""A TAB offers what the tools know, and nothing behind other programs."""

import os
import pty
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from megatron_af.completion import WRAPPERS, script, words
from megatron_af.config.keys import describe
from tests.pages import help_of

TOOLS = Path(__file__).parents[1] / "tools"
BASH, ZSH = shutil.which("bash"), shutil.which("zsh")
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


TYPED_IN_ZSH = {
    "python tools/start.py --d": "python tools/start.py --dry-run ",
    "python tools/prepare_data.py prep": "python tools/prepare_data.py prepare ",
    "torchrun --nproc_per_node 2 tools/pretrain_af.py --config a.yaml precision=b":
        "torchrun --nproc_per_node 2 tools/pretrain_af.py --config a.yaml precision=bf16 ",
    "python /x/tools/pretrain_af.py model.lm.hid": "python /x/tools/pretrain_af.py model.lm.hidden=",
    "python other.py --d": "python other.py --d",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not ZSH, reason="there is no zsh")
def test_zsh_completes_what_is_typed(tmp_path: Path) -> None:
    """In a terminal, by the TAB key; a key of zsh's own says what then stands in the line."""
    (tmp_path / "complete.sh").write_text(script(TOOLS))
    (tmp_path / ".zshrc").write_text(
        "unsetopt beep\nsource complete.sh\n"
        "said() { print -r -- \"$BUFFER|\" >> said; BUFFER= }\nzle -N said\nbindkey '^T' said\nprint -n > said\n"
    )
    child, terminal = pty.fork()
    if child == 0:  # pragma: no cover
        os.chdir(tmp_path)
        os.environ.update(TERM="dumb", HOME=str(tmp_path), ZDOTDIR=str(tmp_path))
        os.execv(str(ZSH), [str(ZSH), "-d", "-i"])

    def lines_when(count: int) -> list[str]:
        late = time.monotonic() + 30
        while not (tmp_path / "said").exists() or (tmp_path / "said").read_text().count("|\n") < count:
            assert time.monotonic() < late, "zsh says nothing"
            time.sleep(0.05)
        return (tmp_path / "said").read_text().split("|\n")

    try:
        lines_when(0)
        for number, line in enumerate(TYPED_IN_ZSH, 1):
            os.write(terminal, f"{line}\t\x14".encode())
            lines_when(number)
        assert dict(zip(TYPED_IN_ZSH, lines_when(len(TYPED_IN_ZSH)), strict=False)) == TYPED_IN_ZSH
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


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
