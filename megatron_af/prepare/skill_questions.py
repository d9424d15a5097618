"""Multiple-choice questions whose answers strong labels give, without a language model: AudioSkills' truth-based part.

    for asked in questions(sounds, seconds, labels, random.Random(7)): …       # Question, the right option first

Skills by the names of Audio Flamingo 2 (appendix C): temporal order, attribute, referring and grounding; counting in
three levels (alone, among other sounds, with some at the same time); attribute identification, as far as labels show
attributes (which sound lasts longest). What labels leave open is not asked: sounds that begin together have no order.
Wrong options are sounds of the same recording where there are enough, and others of the data set. ``balance.py`` sees
to the places of right options, and ``text_leak.py`` says what the words still give away.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from megatron_af.data.rows import Question
from megatron_af.prepare.strong_labels import Sound

CLEARLY = 0.5
"""Seconds between two beginnings, or two lengths, that somebody hears apart."""
OPTIONS = 4
ONCE = 0.25
"""Part of the sounds heard once that are asked about: most sounds are, and once would be right by itself."""


def questions(
    sounds: Sequence[Sound], seconds: float, labels: Sequence[str], rng: random.Random
) -> Iterator[Question]:
    """Each skill once, where the labels allow it.

    Args:
        seconds: of the recording.
        labels: of the whole data set, to take wrong options from.
    """
    for maker in (_order, _attribute, _referring, _grounding, _counting, _longest):
        yield from filter(None, [maker(sounds, seconds, labels, rng)])



def _order(sounds: Sequence[Sound], seconds: float, labels: Sequence[str], rng: random.Random) -> Question | None:
    """In which order do they begin?"""
    once = _told_apart(_once(sounds))
    if len(once) < 3:
        return None
    names = [sound.label for sound in once[:4]]
    wrong: list[str] = []
    for _ in range(50):
        other = rng.sample(names, len(names))
        text = ", then ".join(other)
        if other != names and text not in wrong:
            wrong.append(text)
        if len(wrong) == OPTIONS - 1:
            break
    return question("temporal: order", "in which order do these sounds begin?", ", then ".join(names), wrong)


def _referring(sounds: Sequence[Sound], seconds: float, labels: Sequence[str], rng: random.Random) -> Question | None:
    """Which one comes at a place, or next to another one?"""
    once = {sound.label for sound in _once(sounds)}
    # Next to each other among all that begin: one that is heard again may begin between two of these, or with one.
    next_to = [
        (a.label, b.label)
        for place, (a, b) in enumerate(pairwise(sounds))
        if {a.label, b.label} <= once and _told_apart(sounds[max(0, place - 1) : place + 3])
    ]
    if len(once) < 3 or not next_to:
        return None
    before, after = rng.choice(next_to)
    if rng.random() < 0.5:
        prompt, answer = f"which sound begins right after the {before}?", after
    else:
        prompt, answer = f"which sound begins right before the {after}?", before
    asked = frozenset({before, after} - {answer})
    return question("temporal: referring", prompt, answer, others(answer, sounds, labels, rng, without=asked))


def _grounding(sounds: Sequence[Sound], seconds: float, labels: Sequence[str], rng: random.Random) -> Question | None:
    """When is it heard?"""
    once = [s for s in _once(sounds) if s.end - s.start < seconds / 2]
    if not once:
        return None
    sound = rng.choice(once)
    answer = _seconds(sound.start, sound.end)
    # Times of other sounds: made-up ones would be told from real ones by their numbers alone.
    apart = [s for s in sounds if not s.overlaps(sound) and abs(s.start - sound.start) > CLEARLY]
    wrong = list(dict.fromkeys(_seconds(s.start, s.end) for s in rng.sample(apart, min(len(apart), OPTIONS - 1))))
    return question("temporal: grounding", f"when is the {sound.label} heard?", answer, wrong)


def _attribute(sounds: Sequence[Sound], seconds: float, labels: Sequence[str], rng: random.Random) -> Question | None:
    """How does a sound that comes again change?"""
    again = [label for label, times in Counter(s.label for s in sounds).items() if times == 2]
    if not again:
        return None
    label = rng.choice(sorted(again))
    first, second = (s.end - s.start for s in sounds if s.label == label)
    if abs(first - second) < CLEARLY:
        return None
    answer = "longer" if second > first else "shorter"
    prompt = f"the {label} is heard twice: how long is the second one, against the first?"
    return question("temporal: attribute", prompt, answer, ["shorter" if answer == "longer" else "longer"])


def _counting(sounds: Sequence[Sound], seconds: float, labels: Sequence[str], rng: random.Random) -> Question | None:
    """How often is it heard?"""
    counts = Counter(s.label for s in sounds)
    label = rng.choice(sorted(counts))
    times, others = counts[label], [s for s in sounds if s.label != label]
    if times > 9 or (times == 1 and rng.random() > ONCE):
        return None
    mine = [s for s in sounds if s.label == label]
    level = 1 if not others else 3 if any(s.overlaps(o) for s in mine for o in others) else 2
    lowest = max(1, times - rng.randrange(OPTIONS))
    wrong = [n for n in range(lowest, lowest + OPTIONS) if n != times]
    prompt = f"how many times is the {label} heard?"
    return question(f"counting: level {level}", prompt, str(times), [str(n) for n in wrong])


def _longest(sounds: Sequence[Sound], seconds: float, labels: Sequence[str], rng: random.Random) -> Question | None:
    """Which one lasts longest?"""
    lasting = sorted(_once(sounds), key=lambda s: s.start - s.end)
    if len(lasting) < 2 or (lasting[0].end - lasting[0].start) - (lasting[1].end - lasting[1].start) < CLEARLY:
        return None
    answer = lasting[0].label
    wrong = [s.label for s in lasting[1:OPTIONS]]
    return question("attribute identification", "which of these sounds lasts longest?", answer, wrong)


def question(skill: str, prompt: str, answer: str, wrong: Sequence[str]) -> Question | None:
    """The right option first; None where there is no wrong one."""
    if not wrong:
        return None
    return Question(prompt=prompt, output=answer, skill=skill, options=(answer, *wrong))


def _once(sounds: Sequence[Sound]) -> list[Sound]:
    """Those whose label is heard once, so that "the dog" is well defined."""
    counts = Counter(s.label for s in sounds)
    return [s for s in sounds if counts[s.label] == 1]


def _told_apart(sounds: Sequence[Sound]) -> list[Sound]:
    """The sounds, if each begins clearly after the one before; else none, for their order is open."""
    apart = all(b.start - a.start >= CLEARLY for a, b in pairwise(sounds))
    return list(sounds) if apart else []


def others(
    answer: str,
    sounds: Sequence[Sound],
    labels: Sequence[str],
    rng: random.Random,
    without: frozenset[str] = frozenset(),
) -> list[str]:
    """Wrong options: sounds that are heard as well, then such as are not."""
    inside = sorted({s.label for s in sounds} - {answer} - without)
    outside = [label for label in labels if label not in {s.label for s in sounds}]
    rng.shuffle(inside)
    wrong = inside[: OPTIONS - 1]
    return wrong + rng.sample(outside, min(len(outside), OPTIONS - 1 - len(wrong)))


def _seconds(start: float, end: float) -> str:
    return f"from {start:.1f} to {end:.1f} seconds"
