"""How much multiple-choice questions give away: what a model of their text alone answers, above chance.

    found = text_leak(rows)         # {"temporal: order": Leak(right=27.1, chance=25.0, n=412), …, "all": …}

The model sees words of the question, of an option, both together, and the option's place and length among the others;
it learns on one half of the recordings and answers about the other, and the other way round. It hears nothing.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_af.data.rows import Question, Row

FEATURES = 2**16
LEAST = 20
"""Questions in each half, for a measurement to mean anything."""


@dataclass(frozen=True, kw_only=True)
class Leak:
    right: float
    """Percent that the text alone answers."""
    chance: float
    """Percent that drawing among the options would."""
    n: int

    @property
    def error(self) -> float:
        """Standard error of ``right`` in points, if nothing leaked."""
        return float(100 * np.sqrt(self.chance / 100 * (1 - self.chance / 100) / self.n))

    def __str__(self) -> str:
        gap = f"{self.right - self.chance:+.1f} ± {self.error:.1f} points above chance"
        return f"text alone answers {self.right:.1f}% of {self.n:,}: {gap}"


def text_leak(rows: Sequence[Row]) -> dict[str, Leak]:
    """By skill and over ``all``; empty where there are too few questions."""
    halves: tuple[list[Question], list[Question]] = ([], [])
    recordings = dict.fromkeys(map(_about, rows))
    half = {name: place % 2 for place, name in enumerate(recordings)}
    for row in rows:
        chosen = halves[half[_about(row)]]
        chosen += [question for question in row.questions if len(question.options) > 1]
    if min(map(len, halves)) < LEAST:
        return {}
    right: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    for learnt, asked in (halves, halves[::-1]):
        for question, answered in zip(asked, _answers(learnt, asked), strict=True):
            outcome = answered == question.output, 1 / len(question.options)
            right[question.skill].append(outcome)
            right["all"].append(outcome)
    return {
        skill: Leak(
            right=100 * sum(hit for hit, _ in found) / len(found),
            chance=100 * sum(chance for _, chance in found) / len(found),
            n=len(found),
        )
        for skill, found in sorted(right.items())
    }


def _about(row: Row) -> str:
    return row.clips[0].recording if row.clips else row.id


def _answers(learnt: Sequence[Question], asked: Sequence[Question]) -> list[str]:
    # Imported only now: it takes seconds, and a command answers at once.
    from sklearn.feature_extraction import FeatureHasher
    from sklearn.linear_model import LogisticRegression

    hasher = FeatureHasher(FEATURES, input_type="string")
    seen = [(q, place) for q in learnt for place in range(len(q.options))]
    truth = [q.options[place] == q.output for q, place in seen]
    model = LogisticRegression(max_iter=200, C=1.0).fit(hasher.transform(list(_features(*one)) for one in seen), truth)
    answers = []
    for question in asked:
        places = range(len(question.options))
        sure = model.decision_function(hasher.transform(list(_features(question, place)) for place in places))
        answers.append(question.options[int(np.argmax(sure))])
    return answers


def _features(question: Question, place: int) -> Iterator[str]:
    option, words = question.options[place], question.prompt.lower().split()
    yield f"place {place} of {len(question.options)}"
    yield f"option {option.lower()}"
    yield f"length {sorted(map(len, question.options)).index(len(option))}"
    yield f"skill {question.skill} option {option.lower()}"
    for word in option.lower().split():
        yield f"word {word}"
        yield from (f"{asked} | {word}" for asked in words)
