"""Examples of docstrings, as programs.

    names = run_example(templates, row=row, tokenizer=tokenizer)        # what its names are afterwards
"""

import textwrap
from itertools import dropwhile, takewhile
from types import ModuleType
from typing import Any


def example(docstring: str | None) -> str:
    """The first lines that are indented, up to one that is not."""

    def indented(line: str) -> bool:
        return not line.strip() or line.startswith("    ")

    lines = dropwhile(lambda line: not line.startswith("    "), (docstring or "").splitlines())
    return textwrap.dedent("\n".join(takewhile(indented, lines)))


def run_example(module: ModuleType, **names: Any) -> dict[str, Any]:
    """Runs a module's example among the module's own names and those that are given."""
    program = example(module.__doc__)
    assert program, f"{module.__name__} shows no example"
    scope = vars(module) | names
    exec(compile(program, f"example of {module.__name__}", "exec"), scope)
    return scope
