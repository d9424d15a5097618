"""Which classes are told apart and which are taken for each other: of questions that name all allowed answers.

    scores = by_class(asked)                     # {"event classification": {"labels": […], "counts": [[…]]}}
    console.print(*class_tables(scores))

``counts[i][j]`` is how often class i was answered by j; the last column counts answers that are none of the options.
``recall`` has a percentage for each class that was asked for.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from megatron_af.evaluate.exchange import plain_answer
from megatron_af.evaluate.hearing import Asked

MOST_LABELS, MOST_COLUMNS = 200, 16
"""Of a table, and of a matrix in a terminal."""
OTHER = "something else"


def by_class(asked: Sequence[Asked]) -> dict[str, dict[str, Any]]:
    """Skill -> its labels and how they were answered, for skills with options."""
    closed: dict[str, list[Asked]] = defaultdict(list)
    for question in asked:
        if question.options:
            closed[question.skill].append(question)
    found = {}
    for skill, questions in sorted(closed.items()):
        labels = sorted({plain_answer(label) for question in questions for label in question.options})
        if len(labels) > MOST_LABELS:
            continue
        place = {label: number for number, label in enumerate(labels)}
        counts = [[0] * (len(labels) + 1) for _ in labels]
        for question in questions:
            if (wanted := place.get(plain_answer(question.wanted))) is not None:
                counts[wanted][place.get(plain_answer(question.heard), len(labels))] += 1
        recall = {
            label: round(100 * row[i] / sum(row), 1)
            for i, (label, row) in enumerate(zip(labels, counts, strict=True))
            if any(row)
        }
        found[skill] = {"labels": labels, "counts": counts, "recall": recall}
    return found


def class_rows(scores: dict[str, Any]) -> Iterator[tuple[str, float, float, int, str]]:
    """Class, recall and precision in percent, how often it was asked, and what it was most often taken for."""
    labels, counts = scores["labels"], scores["counts"]
    for i, label in enumerate(labels):
        n, right = sum(counts[i]), counts[i][i]
        answered = sum(row[i] for row in counts)
        wrong = [(count, (*labels, OTHER)[j]) for j, count in enumerate(counts[i]) if j != i and count]
        most = max(wrong, key=lambda pair: pair[0], default=(0, ""))
        taken = f"{most[1]} ({most[0]})" if most[0] else ""
        yield label, 100 * right / n if n else 0.0, 100 * right / answered if answered else 0.0, n, taken


def class_tables(found: dict[str, Any], title: str = "") -> list[Table]:
    """For the terminal: a line per class, and the matrix where it is narrow enough."""
    out = []
    for skill, scores in found.items():
        grid = Table(title=f"{title}{skill}, by class", title_justify="left")
        grid.add_column("class")
        for name in ("recall", "precision", "questions"):
            grid.add_column(name, justify="right")
        grid.add_column("most often taken for")
        for label, recall, precision, n, taken in class_rows(scores):
            grid.add_row(label, f"{recall:.1f}%", f"{precision:.1f}%", str(n), taken)
        out.append(grid)
        if len(scores["labels"]) <= MOST_COLUMNS:
            out.append(_matrix(skill, scores, title))
    return out


def _matrix(skill: str, scores: dict[str, Any], title: str) -> Table:
    labels, counts = scores["labels"], scores["counts"]
    grid = Table(title=f"{title}{skill}: wanted (lines), answered (columns)", title_justify="left")
    grid.add_column("")
    shown = [j for j in range(len(labels) + 1) if j < len(labels) or any(row[j] for row in counts)]
    for j in shown:
        grid.add_column(str((*labels, OTHER)[j]), justify="right", overflow="ellipsis")
    for i, label in enumerate(labels):
        cells = [str(counts[i][j]) if counts[i][j] else "·" for j in shown]
        grid.add_row(label, *(f"[bold]{c}[/bold]" if j == i else c for j, c in zip(shown, cells, strict=True)))
    return grid
