"""Does a model hear? Accuracy with a question's own audio against audio exchanged between samples.

    asked = ask_all(answer, rows)                  # answer: rows -> answers, question by question
    print(table(summarise(asked)))

Each question is asked twice: about its own clip, and about the clip of another sample that was asked the same
question (any other sample where no one was). What the exchanged audio still gets right is what the question alone
gives away; the difference is what was heard. The third number is what always giving the skill's commonest answer
would get.
"""

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.table import Table

from megatron_af.config import Config
from megatron_af.data.rows import Row
from megatron_af.data.shards import open_rows
from megatron_af.data.storage import DataRoot
from megatron_af.train.callbacks import duration

RESAMPLES = 2_000
LINE_SECONDS = 5.0
"""Between two lines about how far the asking is."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question with what the model said."""

    row: str
    """Id of the row it was written for."""
    skill: str
    prompt: str
    wanted: str
    heard: str
    """Answer with the question's own audio."""
    exchanged: str
    """Answer with another sample's audio."""

    @property
    def right(self) -> bool:
        """Whether the answer with the question's own audio is the wanted one."""
        return _same(self.heard, self.wanted)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracies in percent over ``n`` questions."""

    audio: float
    exchanged: float
    majority: float
    n: int

    @property
    def gap(self) -> float:
        return self.audio - self.exchanged


def evaluation_rows(config: Config, dataset: str) -> list[Row]:
    """All rows of a data set of ``data.datasets``, wherever it lies: JSONL or prepared, on a disk or in a store."""
    return list(open_rows(DataRoot(config.data.root), config.data.datasets[dataset].manifest))


def exchange(rows: Sequence[Row], seed: int = 0) -> list[Row]:
    """Rows of one question each, in the order of rows and questions, with the clips of another row.

    Partners are drawn among the rows that were asked the same question, as a rotation of a shuffle, so that the
    audio is exchanged and not drawn anew; questions that stand alone take any other row.
    """
    rng = random.Random(seed)
    asking: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        for question in row.questions:
            asking[question.prompt].append(index)
    partner: dict[tuple[int, str], int] = {}
    for prompt, group in sorted(asking.items()):
        distinct = sorted(set(group))
        rng.shuffle(distinct)
        for index, other in zip(distinct, distinct[1:] + distinct[:1], strict=True):
            partner[index, prompt] = other if other != index else _another(index, len(rows), rng)
    return [
        replace(row, clips=rows[partner[index, question.prompt]].clips, questions=(question,))
        for index, row in enumerate(rows)
        for question in row.questions
    ]


def _another(index: int, total: int, rng: random.Random) -> int:
    return (index + rng.randrange(1, total)) % total if total > 1 else index


def ask_all(answer: Callable[[Sequence[Row]], list[str]], rows: Sequence[Row]) -> list[Asked]:
    """``answer`` gives one answer per question, rows first, then questions.

    Raises:
        ValueError: for rows without a clip or a question, and for no rows.
    """
    if not rows:
        raise ValueError("an evaluation of hearing needs rows, got none; check the evaluation set's manifest")
    for row in rows:
        if not row.clips or not row.questions:
            raise ValueError(f"row {row.id}: an evaluation of hearing needs a clip and a question")
    swapped = exchange(rows)
    heard = answer(rows)
    # Exchanged questions about one clip are asked together: the clip is encoded once.
    order = sorted(range(len(swapped)), key=lambda i: (swapped[i].clips[0].path, swapped[i].clips[0].start))
    exchanged = dict(zip(order, answer(_by_clip([swapped[i] for i in order])), strict=True))
    questions = [(row.id, question) for row in rows for question in row.questions]
    return [
        Asked(
            row=row,
            skill=question.skill,
            prompt=question.prompt,
            wanted=question.output,
            heard=heard[i],
            exchanged=exchanged[i],
        )
        for i, (row, question) in enumerate(questions)
    ]


class AskedLine:
    """Prints ``asked 512/7000 7.3% | eta 1:02`` now and then, while questions are being answered.

    Args:
        total: how often a question will be asked, over all sets, each with its own audio and with another's.
        ranks: how many processes share them; this one's progress stands for all.
    """

    def __init__(self, total: int, ranks: int = 1) -> None:
        self._total, self._ranks = total, ranks
        self._asked = 0
        self._begun = self._printed = time.monotonic()

    def __call__(self, questions: int) -> None:
        # Ranks have unequal shares: only end() says that all are asked.
        self._asked = min(self._total - 1, self._asked + questions * self._ranks)
        if time.monotonic() - self._printed >= LINE_SECONDS:
            self._print()

    def end(self) -> None:
        if self._total:
            self._asked = self._total
            self._print()

    def _print(self) -> None:
        now = self._printed = time.monotonic()
        share = self._asked / self._total
        eta = duration((now - self._begun) * (1 / share - 1))
        print(f"asked {self._asked}/{self._total} {share:.1%} | eta {eta}", flush=True)


def _by_clip(rows: Sequence[Row]) -> list[Row]:
    merged: list[Row] = []
    for row in rows:
        if merged and merged[-1].clips == row.clips:
            merged[-1] = replace(merged[-1], questions=merged[-1].questions + row.questions)
        else:
            merged.append(row)
    return merged


def summarise(asked: Sequence[Asked], seed: int = 0) -> dict[str, Any]:
    """``{"skills": {name: {audio, exchanged, majority, n}}, "overall": {… and gap, interval}}``, in percent.

    ``interval`` is the 95% bootstrap interval of the gap, by resampling rows.
    """
    by_skill: dict[str, list[Asked]] = defaultdict(list)
    for question in asked:
        by_skill[question.skill].append(question)
    scores = {skill: _score(found) for skill, found in sorted(by_skill.items())}
    n = len(asked)
    overall = Score(
        audio=sum(s.audio * s.n for s in scores.values()) / n,
        exchanged=sum(s.exchanged * s.n for s in scores.values()) / n,
        majority=sum(s.majority * s.n for s in scores.values()) / n,
        n=n,
    )
    low, high = _interval(asked, seed)
    return {
        "skills": {skill: _rounded(score) for skill, score in scores.items()},
        "overall": _rounded(overall) | {"gap": round(overall.gap, 1), "interval": [round(low, 1), round(high, 1)]},
    }


def _score(asked: Sequence[Asked]) -> Score:
    n = len(asked)
    commonest = Counter(question.wanted for question in asked).most_common(1)[0][1]
    return Score(
        audio=100 * sum(q.right for q in asked) / n,
        exchanged=100 * sum(_same(q.exchanged, q.wanted) for q in asked) / n,
        majority=100 * commonest / n,
        n=n,
    )


def _interval(asked: Sequence[Asked], seed: int) -> tuple[float, float]:
    names = {row: i for i, row in enumerate(dict.fromkeys(q.row for q in asked))}
    gain, count = np.zeros(len(names)), np.zeros(len(names))
    for q in asked:
        gain[names[q.row]] += q.right - _same(q.exchanged, q.wanted)
        count[names[q.row]] += 1
    draws = np.random.default_rng(seed).integers(len(names), size=(RESAMPLES, len(names)))
    gaps = 100 * gain[draws].sum(1) / count[draws].sum(1)
    low, high = np.percentile(gaps, [2.5, 97.5])
    return float(low), float(high)


def _same(answer: str, wanted: str) -> bool:
    return " ".join(answer.lower().split()) == " ".join(wanted.lower().split())


def _rounded(score: Score) -> dict[str, float]:
    return {
        "audio": round(score.audio, 1),
        "exchanged": round(score.exchanged, 1),
        "majority": round(score.majority, 1),
        "n": score.n,
    }


def table(summary: dict[str, Any], title: str = "") -> Table:
    """The summary as a table: a line per skill, and one over all questions."""
    grid = Table(title=title, title_justify="left")
    grid.add_column("skill")
    for name in ("right audio", "exchanged audio", "commonest answer", "gap", "questions"):
        grid.add_column(name, justify="right")
    lines = [*summary["skills"].items(), ("all", summary["overall"])]
    for name, s in lines:
        gap = s["audio"] - s["exchanged"]
        grid.add_section() if name == "all" else None
        cells = f"{s['audio']:.1f}%", f"{s['exchanged']:.1f}%", f"{s['majority']:.1f}%", f"{gap:+.1f}", str(s["n"])
        grid.add_row(name, *cells)
    return grid
