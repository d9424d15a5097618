"""What the README and the docs tell a reader to type exists, and what they point at is there."""

import re
from pathlib import Path

import pytest

from tests.house import MODULES, tracked
from tests.pages import COMMANDS, DOCS, README, ROOT, help_of


@pytest.mark.parametrize(
    "target", sorted({c[1] for _, c in COMMANDS if c[0] == "make"} | set(re.findall(r"`make ([\w-]+)`", README)))
)
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def python_program(command: list[str]) -> tuple[list[str], list[str]] | None:
    """(what Python runs, its arguments) of a command that starts one of this project's programs."""
    for place, word in enumerate(command):
        if word.startswith("tools/"):
            return [word], command[place + 1 :]
        if word == "-m" and command[place + 1] == "af_pipelines":
            return ["-m", "af_pipelines"], command[place + 2 :]
        if word == "af-pipelines":
            return ["-m", "af_pipelines"], command[place + 1 :]
    return None


PROGRAMS = [(doc, *found) for doc, command in COMMANDS if (found := python_program(command))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("doc", "program", "arguments"), PROGRAMS, ids=[f"{d}: {' '.join([*p, *a])}"[:80] for d, p, a in PROGRAMS]
)
def test_commands_and_their_flags_exist(doc: str, program: list[str], arguments: list[str]) -> None:
    """Flags and subcommands stand in ``--help``, and named configuration files are there."""
    subcommands = []
    text = help_of(*program)
    for word in arguments:
        if not re.fullmatch(r"[a-z][a-z_-]*", word) or not re.search(rf"\b{word}\b", text):
            break
        try:
            text = help_of(*program, *subcommands, word)
        except AssertionError:
            break
        subcommands.append(word)
    for word in arguments:
        if word.startswith("-"):
            assert re.search(rf"(?<![\w-]){re.escape(word.split('=')[0])}(?![\w-])", text), f"no {word} in --help"
        if word.startswith("configs/"):
            assert (ROOT / word).is_file(), f"{word} does not exist"


def test_docstrings_have_commands_and_their_modules_and_tools_exist() -> None:
    found = [command for _, command in COMMANDS]
    assert ["python", "tools/demo.py"] in found and len(found) > 40
    modules = {command[command.index("-m") + 1] for command in found if "-m" in command}
    assert {name for name in modules if name.startswith(("megatron_af", "af_pip")) and name not in MODULES} == set()
    tools = {word for command in found for word in command if word.startswith(("tools/", "tests/"))}
    assert {name for name in tools if not (ROOT / name.split("::")[0]).exists()} == set()


@pytest.mark.parametrize("doc", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(doc: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", doc.read_text())
    assert [t for t in targets if "://" not in t and not (doc.parent / t).exists()] == []


@pytest.mark.parametrize("doc", DOCS, ids=lambda path: path.name)
def test_files_that_are_named_exist(doc: Path) -> None:
    """Paths in backticks, from the root or from the package; what runs leave behind is not expected."""
    named = re.findall(r"`((?:megatron_af|dali_pipes|kubeflow|tools|tests|configs|docs)/[\w./-]+)`", doc.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_tree_names_what_is_there_and_every_folder() -> None:
    (tree,) = re.findall(r"```\n(configs/.*?)```", README, flags=re.DOTALL)
    named = {("megatron_af/" if line.startswith("  ") else "") + line.split()[0] for line in tree.splitlines()}
    assert {name for name in named if not (ROOT / name).exists()} == set()
    folders = {path.relative_to(ROOT).parts[:-1] for path in tracked()}
    outer = {f"{parts[0]}/" for parts in folders if parts and not parts[0].startswith(".")}
    inner = {f"megatron_af/{parts[1]}/" for parts in folders if parts[:1] == ("megatron_af",) and len(parts) > 1}
    assert (outer | inner) - named == set()


@pytest.mark.parametrize("doc", DOCS, ids=[doc.name for doc in DOCS])
def test_the_tests_that_hold_a_promise_exist(doc: Path) -> None:
    for name, test in re.findall(r"`(tests/[\w./-]+\.py)::(\w+)`", doc.read_text()):
        assert f"def {test}(" in (ROOT / name).read_text(), f"{doc.name} names {name}::{test}"
