"""docs/commands.md names every command that is documented, and tests that are there and speak of it."""

import re

import pytest

from tests.documented import HELD, documented, held_by, page
from tests.pages import ROOT


def test_the_page_lists_what_is_documented() -> None:
    assert (ROOT / "docs/commands.md").read_text() == page(), "python -m tests.documented > docs/commands.md"


def test_a_command_that_nothing_holds_is_found() -> None:
    with pytest.raises(KeyError):
        held_by("python tools/new.py --flag")


def test_every_line_of_the_list_is_used() -> None:
    used = {held_by(command) for command in documented()}
    assert set(HELD.values()) - used == set()


def test_what_is_named_runs_a_program_of_this_name() -> None:
    """The test is there, and it, or a helper that it imports, names the tool of each command that it is said to run."""
    for command in documented():
        for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", held_by(command)):
            text = (ROOT / path).read_text()
            assert not name or f"def {name}(" in text, f"{command}: {path}::{name}"
            tool = re.search(r"tools/(\w+)\.py", command)
            if tool and held_by(command).startswith("run:"):
                beside = re.findall(r"^from (tests[\w.]*) import", text, flags=re.MULTILINE)
                files = [ROOT / (module.replace(".", "/") + ".py") for module in beside]
                texts = [text, *(file.read_text() for file in files if file.is_file())]
                said = rf"\b{tool[1]}\.py\b|\btools\.{tool[1]}\b|\btools import [^\n]*\b{tool[1]}\b|\"{tool[1]}\": "
                assert any(re.search(said, one) for one in texts), f"{command}: {path} never names tools/{tool[1]}.py"
