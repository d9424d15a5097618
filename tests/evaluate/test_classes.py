"""Classes: what was taken for what, by hand."""

import io

from rich.console import Console

from megatron_af.evaluate.classes import by_class, class_rows, class_tables
from megatron_af.evaluate.hearing import Asked


def asked(wanted: str, heard: str, *, options: tuple[str, ...] = ("Cat", "dog", "rain"), skill: str = "what") -> Asked:
    return Asked(row="r", skill=skill, prompt="?", wanted=wanted, heard=heard, exchanged="", options=options)


ASKED = [
    asked("cat", "cat"), asked("cat", "Dog "), asked("cat", "dog"), asked("dog", "dog"), asked("dog", "a lion"),
    asked("free text", "anything", options=()), asked("yes", "yes", options=("yes", "no"), skill="loud"),
]  # fmt: skip


def test_answers_are_counted_by_class() -> None:
    found = by_class(ASKED)
    assert found == {
        "loud": {"labels": ["no", "yes"], "counts": [[0, 0, 0], [0, 1, 0]], "recall": {"yes": 100.0}},
        "what": {
            "labels": ["cat", "dog", "rain"],
            "counts": [[1, 2, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]],
            "recall": {"cat": 33.3, "dog": 50.0},
        },
    }
    lines = {line[0]: line[1:] for line in class_rows(found["what"])}
    assert lines["cat"] == (100 / 3, 100.0, 3, "dog (2)") and lines["dog"][1] == 100 / 3
    assert lines["dog"][3] == "something else (1)" and lines["rain"] == (0.0, 0.0, 0, "")
    assert by_class([asked("a", "a", options=tuple(map(str, range(201))))]) == {}


def test_tables_show_lines_and_the_matrix_where_it_is_narrow() -> None:
    console = Console(record=True, width=140, file=io.StringIO())
    console.print(*class_tables(by_class(ASKED), "test: "))
    text = " ".join(console.export_text().split())
    assert "test: what, by class" in text and "33.3%" in text and "dog (2)" in text
    assert "test: what: wanted (lines), answered (columns)" in text and "something else" in text
    wide = by_class([asked("1", "1", options=tuple(map(str, range(17))))])
    assert len(class_tables(wide)) == 1
