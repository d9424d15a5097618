"""What multiple-choice questions must not give away by themselves: which place, and which word, is usually right.

    rows, left_out = fair(rows, seed=0)         # no option is right much more often than its share
    rows = balanced(rows, seed=0)               # right options stand as often at each place
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from megatron_af.data.rows import Question, Row

SLACK = 2
"""How many times more than its share an option may be right: the first time, it has no share yet."""


def fair(rows: Sequence[Row], seed: int) -> tuple[list[Row], int]:
    """Without questions whose answer has been right too often, in its skill, for how often it was among the options:
    most sounds are heard once, so "once" would be a good guess. Also how many questions were left out for it."""
    right, shown = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    kept: dict[int, list[Question]] = defaultdict(list)
    order = [(number, place) for number, row in enumerate(rows) for place in range(len(row.questions))]
    random.Random(seed).shuffle(order)
    for number, place in order:
        question = rows[number].questions[place]
        key = question.skill, question.output
        if question.options and right[key] + 1 > (shown[key] + 1) / len(question.options) + SLACK:
            continue
        right[key] += 1
        shown.update((question.skill, option) for option in question.options)
        kept[number].append(question)
    made = [
        replace(row, questions=tuple(q for q in row.questions if q in kept[number]))
        for number, row in enumerate(rows)
        if kept[number]
    ]
    return made, sum(len(row.questions) for row in rows) - sum(len(row.questions) for row in made)


def balanced(rows: Iterable[Row], seed: int) -> list[Row]:
    """Rows whose questions have their options in an order of their own; of the questions with N options in a skill, the
    numbers of right ones at each place differ by one at most."""
    free: dict[tuple[str, int], list[int]] = defaultdict(list)

    def ordered(question: Question, key: str) -> Question:
        count = len(question.options)
        if count < 2:
            return question
        rng = random.Random(f"{seed} {key} {question.prompt}")
        left = free[question.skill, count]
        if not left:
            left += range(count)
        place = left.pop(rng.randrange(len(left)))
        others = [option for option in question.options if option != question.output]
        rng.shuffle(others)
        return replace(question, options=(*others[:place], question.output, *others[place:]))

    return [replace(row, questions=tuple(ordered(q, row.id) for q in row.questions)) for row in rows]
