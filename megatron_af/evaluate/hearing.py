"""Does a model hear? Accuracy with a question's own audio against audio exchanged between samples.

    asked = ask_all(answer, rows)                  # answer: rows -> an Answer to each one's last question
    print(table(summarise(asked)))

Each question is asked twice: about its own recording, and about another one whose right answer to the same question is
another. What the exchanged audio still gets right is what the question alone gives away, for a model that hears would
answer otherwise; the difference is what was heard. Where no recording fits, any other one is taken, and the summary
counts such questions. The third number is what always giving the skill's commonest answer would get.

A question that is too long to be asked is answered by nothing, which is wrong; the summary counts these, too.

Where questions name all allowed answers, the summary says besides how far their confidence can be trusted.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.table import Table

from megatron_af.config import Config
from megatron_af.data.rows import Row, RowError
from megatron_af.data.shards import open_rows
from megatron_af.data.storage import DataRoot
from megatron_af.evaluate.exchange import exchange, plain_answer
from megatron_af.evaluate.intervals import interval
from megatron_af.progress import Progress
from megatron_af.runs.calibration import calibration_error

if TYPE_CHECKING:
    from megatron_af.inference.writing import Answer


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
    """Answer with another recording's audio."""
    partner: bool = True
    """Whether that recording was asked the same and has another answer."""
    confidence: float = 0.0
    """Probability of the answer with the question's own audio (``inference/writing.py``)."""
    unsure: bool | None = None
    """Whether it would have been told to be none (``runs/calibration.py``); None: nobody knows."""
    too_long: bool = False
    """It could not be asked."""
    options: tuple[str, ...] = ()
    """All answers that the question allows, where it says so."""
    turn: int = 0
    """Which one of a conversation it is, from 1; 0: it stands alone."""

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
    """The rows of a data set of ``data.datasets`` that can be read, wherever it lies: JSONL or prepared, on a disk or
    in a store. Each has an id of its own (``x~2`` for another ``x``): what is said of it is told by that."""
    return _readable(config, dataset)[0]


def measured_rows(config: Config, dataset: str) -> list[Row]:
    """Those that ``config.stage`` can be measured by; the first rank says how many are left out, and why the first."""
    import torch.distributed as dist  # tools read this module for their help, which waits for no torch

    rows, problems = _readable(config, dataset)
    if config.curriculum[config.stage].objective == "contrastive":
        fit = [row for row in rows if row.clips and (row.captions or row.meta.get("labels"))]
        wanted = "a recording with a caption or labels"
    else:
        fit = [row for row in rows if row.clips and row.questions]
        wanted = "a question about a recording"
    left = {row.id for row in fit}
    problems += [f"row {row.id}: expected {wanted}, it has none" for row in rows if row.id not in left]
    if problems and (not dist.is_initialized() or dist.get_rank() == 0):
        total = len(problems) + len(fit)
        print(f"{dataset}: {len(problems):,} of {total:,} rows are left out, such as {problems[0]}", flush=True)
    return fit


def _readable(config: Config, dataset: str) -> tuple[list[Row], list[str]]:
    """The rows, and what is wrong with the others."""
    listed = open_rows(DataRoot(config.data.root), config.data.datasets[dataset].manifest)
    rows, problems, seen = list[Row](), list[str](), Counter[str]()
    for place in range(len(listed)):
        try:
            row = listed[place]
        except RowError as error:
            problems.append(str(error))
            continue
        seen[row.id] += 1
        rows.append(row if seen[row.id] == 1 else replace(row, id=f"{row.id}~{seen[row.id]}"))
    return rows, problems


def ask_all(
    answer: "Callable[[Sequence[Row]], Sequence[Answer | None]]", rows: Sequence[Row], *, calibrated: bool = False
) -> list[Asked]:
    """Every question of the rows, with their own and with exchanged audio.

    Args:
        answer: to each row's last question; None where that is too long to be asked.
        calibrated: what it is not sure of it withholds (``Decoding.unsure``).

    Raises:
        ValueError: for rows without a clip or a question, and for no rows or a single recording.
    """
    if not rows:
        raise ValueError("an evaluation of hearing needs rows, got none; check the evaluation set's manifest")
    for row in rows:
        if not row.clips or not row.questions:
            raise ValueError(f"row {row.id}: an evaluation of hearing needs a clip and a question")
    asked = questions_of(rows)
    swapped = exchange(asked)
    heard = answer(asked)
    # Exchanged questions about one clip are asked together: the clip is encoded once.
    order = sorted(range(len(swapped)), key=lambda i: [(clip.recording, clip.start) for clip in swapped[i].row.clips])
    exchanged = dict(zip(order, answer([swapped[i].row for i in order]), strict=True))
    return [
        Asked(
            row=row.id,
            skill=row.questions[-1].skill,
            prompt=row.questions[-1].prompt,
            wanted=row.questions[-1].output,
            heard=own.said if (own := heard[i]) else "",
            exchanged=other.said if (other := exchanged[i]) else "",
            partner=swapped[i].partner,
            confidence=round(own.confidence, 4) if own else 0.0,
            unsure=None if own is None or not calibrated else own.withheld is not None,
            too_long=own is None,
            options=row.questions[-1].options,
            turn=len(row.questions) if row.template == "dialogue" else 0,
        )
        for i, row in enumerate(asked)
    ]


def answer_lines(dataset: str, asked: Sequence[Asked]) -> list[str]:
    """A line of ``answers.jsonl`` for every question of a data set (``runs/results.py``)."""
    lines = []
    for number, question in enumerate(asked):
        sample = {"id": f"{dataset}/{number}", "group": f"{dataset}/{question.row}", "right": int(question.right)}
        told = {name: value for name, value in asdict(question).items() if name != "options"}  # the prompt says them
        lines.append(json.dumps({"set": dataset, **sample, **told}))
    return lines


def questions_of(rows: Sequence[Row]) -> list[Row]:
    """Each question that is asked about some rows, as a row."""
    return [asked for row in rows for asked in row.each_question()]


class AskedLine:
    """Tells ``asked 512/7000 7.3% | eta 1:02`` while questions are being answered.

    Args:
        total: how often a question will be asked, over all sets, each with its own audio and with another's.
        ranks: how many processes share them; this one's progress stands for all.
    """

    def __init__(self, progress: Progress, total: int, ranks: int = 1) -> None:
        self._progress, self._total, self._ranks = progress, total, ranks
        self._asked = 0

    def __call__(self, questions: int) -> None:
        # Ranks have unequal shares: only end() says that all are asked.
        self._asked = min(self._total - 1, self._asked + questions * self._ranks)
        self._progress.update("asked", self._asked, self._total)

    def end(self) -> None:
        if self._total:
            self._progress.update("asked", self._total, self._total)


def summarise(asked: Sequence[Asked], seed: int = 0) -> dict[str, Any]:
    """``{"skills": {name: {audio, exchanged, majority, n}}, "overall": {… and more}}``, in percent; where there are
    conversations, ``"turns": {"1": …}`` besides. A turn is asked behind the right answers to those before it.
    ``"confidence"`` (:func:`confidence`) is there where questions have options.

    More are ``gap`` and ``interval``, the 95% bootstrap interval of the gap by resampling rows; and numbers of
    questions: ``too_long`` to be asked, and ``no_partner``, which had to take any other recording's audio.
    """
    by_skill, by_turn = defaultdict[str, list[Asked]](list), defaultdict[int, list[Asked]](list)
    for question in asked:
        by_skill[question.skill].append(question)
        if question.turn:
            by_turn[question.turn].append(question)
    scores = {skill: _score(found) for skill, found in sorted(by_skill.items())}
    n = len(asked)
    overall = Score(
        audio=sum(s.audio * s.n for s in scores.values()) / n,
        exchanged=sum(s.exchanged * s.n for s in scores.values()) / n,
        majority=sum(s.majority * s.n for s in scores.values()) / n,
        n=n,
    )
    gains = [100.0 * (q.right - _same(q.exchanged, q.wanted)) for q in asked]
    low, high = interval(gains, [q.row for q in asked], seed)
    turns = {str(turn): _rounded(_score(found)) for turn, found in sorted(by_turn.items())}
    return {
        "skills": {skill: _rounded(score) for skill, score in scores.items()},
        **({"turns": turns} if turns else {}),
        **({"confidence": sure} if (sure := confidence(asked)) else {}),
        "overall": _rounded(overall)
        | {"gap": round(overall.gap, 1), "interval": [round(low, 1), round(high, 1)]}
        | {
            "too_long": sum(question.too_long for question in asked),
            "no_partner": sum(not question.partner for question in asked),
        },
    }


def confidence(asked: Sequence[Asked]) -> dict[str, float]:
    """Of the questions with options, in percent: ``error``, the expected calibration error; of a calibrated stage also
    ``answered``, those that it is sure enough of, and ``right``, how many of these are."""
    closed = [question for question in asked if question.options]
    if not closed:
        return {}
    found = {"error": calibration_error([q.confidence for q in closed], [q.right for q in closed])}
    if any(question.unsure is not None for question in closed):
        sure = [question for question in closed if question.unsure is False]
        found["answered"] = 100 * len(sure) / len(closed)
        if sure:
            found["right"] = 100 * sum(question.right for question in sure) / len(sure)
    return {name: round(value, 1) for name, value in found.items()}


def _score(asked: Sequence[Asked]) -> Score:
    n = len(asked)
    commonest = Counter(plain_answer(question.wanted) for question in asked).most_common(1)[0][1]
    return Score(
        audio=100 * sum(q.right for q in asked) / n,
        exchanged=100 * sum(_same(q.exchanged, q.wanted) for q in asked) / n,
        majority=100 * commonest / n,
        n=n,
    )


def _same(answer: str, wanted: str) -> bool:
    return plain_answer(answer) == plain_answer(wanted)


def _rounded(score: Score) -> dict[str, float]:
    return {
        "audio": round(score.audio, 1),
        "exchanged": round(score.exchanged, 1),
        "majority": round(score.majority, 1),
        "n": score.n,
    }


def table(summary: dict[str, Any], title: str = "") -> Table:
    """The summary as a table: a line per skill and per turn of conversations, and one over all questions."""
    grid = Table(title=title, title_justify="left")
    grid.add_column("skill", min_width=14)  # no word of the papers' names is cut, however narrow the terminal
    for name in ("right audio", "exchanged audio", "commonest answer", "gap", "questions"):
        grid.add_column(name, justify="right")
    overall = summary["overall"]
    counts = {"too long": overall["too_long"], "no recording with another answer": overall["no_partner"]}
    told = [f"{what}: {count}" for what, count in counts.items() if count]
    if sure := summary.get("confidence", {}):
        told.append(f"confidence is off by {sure['error']:.1f} points")
    if "right" in sure:
        told.append(f"sure of {sure['answered']:.1f}%, of which {sure['right']:.1f}% are right")
    grid.caption = ", ".join(told)
    turns = [(f"turn {turn}", score) for turn, score in summary.get("turns", {}).items()]
    lines = [*summary["skills"].items(), *turns, ("all", overall)]
    for name, s in lines:
        gap = s["audio"] - s["exchanged"]
        grid.add_section() if name in ("turn 1", "all") else None
        cells = f"{s['audio']:.1f}%", f"{s['exchanged']:.1f}%", f"{s['majority']:.1f}%", f"{gap:+.1f}", str(s["n"])
        grid.add_row(name, *cells)
    return grid
