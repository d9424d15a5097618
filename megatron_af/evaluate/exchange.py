"""Audio exchanged between rows: what a model says of a recording that was not meant.

    for row in exchange(asked):          # each asks its last question (Row.each_question)
        print(row.row.clips, row.partner)

A partner is another recording that was asked the same question and has another right answer to it: what a model that
hears says of it is wrong, and what one that only reads the question says is as right as before.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import tee

from megatron_af.data.rows import Row


@dataclass(frozen=True, kw_only=True)
class Exchanged:
    """A question about the audio of another row."""

    row: Row
    """The row with the other one's clips in place of its own: turns and examples before the question stay."""
    other: int
    """Place of the other row."""
    partner: bool
    """Whether the other recording was asked the same question and has another answer to it."""


def exchange(asked: Sequence[Row], seed: int = 0) -> list[Exchanged]:
    """Rows, each asking its last question, about the clips of another recording.

    Where there is no partner, the other one is drawn among all rows about another recording. Rows of one question are
    sorted by answer, shuffled within, and rotated past the most common one, so that, where numbers allow, their audio
    is exchanged and not drawn anew.

    Raises:
        ValueError: all rows are about one recording.
    """
    rng = random.Random(seed)
    heard = [_recordings(row) for row in asked]
    asking: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(asked):
        asking[row.questions[-1].prompt].append(index)
    partner: dict[int, int] = {}
    for prompt in sorted(asking):
        group = asking[prompt]
        rng.shuffle(group)
        group.sort(key=lambda index: plain_answer(asked[index].questions[-1].output))
        answers = [plain_answer(asked[index].questions[-1].output) for index in group]
        step = max(Counter(answers).values())
        if step == len(group):
            continue
        taken: set[int] = set()
        left = Counter(answers)  # of those that are not taken
        for place, index in enumerate(group):
            around = ((place + step + more) % len(group) for more in range(len(group)))
            fits = (o for o in around if answers[o] != answers[place] and not heard[group[o]] & heard[index])
            fitting, free = tee(fits)
            any_left = len(group) - len(taken) > left[answers[place]]  # or every look is at all
            found = next((o for o in free if o not in taken), None) if any_left else None
            found = next(fitting, None) if found is None else found
            if found is not None:
                left[answers[found]] -= found not in taken
                taken.add(found)
                partner[index] = group[found]
    exchanged = []
    for index, row in enumerate(asked):
        other = partner[index] if index in partner else _elsewhere(index, heard, rng)
        exchanged.append(Exchanged(row=_about(row, asked[other]), other=other, partner=index in partner))
    return exchanged


def plain_answer(answer: str) -> str:
    """An answer as it is compared: case, spaces, and spaces around marks do not count (word-level tokenizers write
    ``yes , rain`` for ``yes, rain``)."""
    return re.sub(r"\s*([^\w\s])\s*", r"\1", " ".join(answer.lower().split()))


def _recordings(row: Row) -> frozenset[str]:
    """What a row is about; pieces of one recording are one recording."""
    return frozenset(clip.recording for clip in row.own_clips)


def _elsewhere(index: int, heard: Sequence[frozenset[str]], rng: random.Random) -> int:
    start = rng.randrange(len(heard))
    for more in range(len(heard)):
        if not heard[(start + more) % len(heard)] & heard[index]:
            return (start + more) % len(heard)
    raise ValueError("an evaluation that exchanges audio needs rows about two recordings, got one")


def _about(row: Row, other: Row) -> Row:
    if row.template.startswith("interleaved"):
        return replace(row, clips=(*row.clips[:-1], other.own_clips[-1]))
    return replace(row, clips=other.own_clips)
