"""Multiple-choice questions about long recordings whose answers strong labels give: LongAudio's truth-based part.

    for asked in long_questions(sounds, seconds, labels, random.Random(7)): …       # Question, the right option first

Three of LongAudio's tasks: temporal (what begins before or after all else), needle (what is heard for a moment only)
and subscene (what is heard in one third of the recording). Captioning, plot and general questions take a language
model (``written_skills.py``). What labels leave open is not asked: of a third in which several sounds are heard nobody
says which one it is.
"""

import random
from collections.abc import Iterator, Sequence

from megatron_af.data.rows import Question
from megatron_af.prepare.skill_questions import CLEARLY, OPTIONS, others, question
from megatron_af.prepare.strong_labels import Sound

MOMENT = 0.1
"""Largest part of the recording that a needle takes."""
PLACES = ("first", "middle", "last")


def long_questions(
    sounds: Sequence[Sound], seconds: float, labels: Sequence[str], rng: random.Random
) -> Iterator[Question]:
    """Each task once, where the labels allow it.

    Args:
        seconds: of the recording.
        labels: of the whole data set, to take wrong options from.
    """
    for maker in (_temporal, _needle, _subscene):
        yield from filter(None, [maker(sounds, seconds, labels, rng)])


def _temporal(sounds: Sequence[Sound], seconds: float, labels: Sequence[str], rng: random.Random) -> Question | None:
    """What begins before, or after, everything else?"""
    begins: dict[str, float] = {}
    for sound in sounds:
        begins.setdefault(sound.label, sound.start)
    order = sorted(begins, key=begins.__getitem__)
    last = rng.random() < 0.5
    if len(order) < 3:
        return None
    answer, next_to_it = (order[-1], order[-2]) if last else (order[0], order[1])
    if abs(begins[answer] - begins[next_to_it]) < CLEARLY:
        return None
    wrong = rng.sample([label for label in order if label != answer], min(len(order), OPTIONS) - 1)
    # "Begins", not "is heard": a sound that comes again may be heard behind it.
    prompt = f"which sound begins {'after' if last else 'before'} all the others?"
    return question("long: temporal", prompt, answer, wrong)


def _needle(sounds: Sequence[Sound], seconds: float, labels: Sequence[str], rng: random.Random) -> Question | None:
    """What is there only for a moment, and clearly shorter than all else?"""
    lasts: dict[str, float] = {}
    for sound in sounds:
        lasts[sound.label] = lasts.get(sound.label, 0.0) + sound.end - sound.start
    order = sorted(lasts, key=lasts.__getitem__)
    if len(order) < 2 or lasts[order[0]] > MOMENT * seconds or lasts[order[1]] - lasts[order[0]] < CLEARLY:
        return None
    wrong = rng.sample(order[1:], min(len(order), OPTIONS) - 1)
    return question("long: needle", "which sound is heard for a moment only?", order[0], wrong)


def _subscene(sounds: Sequence[Sound], seconds: float, labels: Sequence[str], rng: random.Random) -> Question | None:
    """What is heard in one part of the recording?"""
    found: list[tuple[str, str]] = []
    for number, place in enumerate(PLACES):
        begin, end = number * seconds / 3, (number + 1) * seconds / 3
        there = [sound for sound in sounds if sound.start < end and sound.end > begin]
        if len({sound.label for sound in there}) == 1 and any(begin <= s.start and s.end <= end for s in there):
            found.append((place, there[0].label))
    if not found or len({sound.label for sound in sounds}) < 2:
        return None
    place, answer = rng.choice(found)
    wrong = others(answer, sounds, labels, rng)
    return question("long: subscene", f"which sound is heard in the {place} third of the recording?", answer, wrong)
