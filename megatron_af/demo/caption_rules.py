"""Captions of scenes whose truth is known: paraphrases that keep the meaning, and versions that change one thing.

    paraphrases(events, rng, 4)       # ("loud long bell then quiet short dog", "the dog , quiet and short , after …")
    altered(events, "order", rng)     # the same events in another order, or None where there is no other
    hard_negatives(events, rng, 2)    # [("order", "…"), ("attribute", "…"), …], two of each kind that exists

AF-CLAP's caption expansion (Ghosh et al. 2025, section 3) by rule instead of by a language model. True and altered
captions draw from the same phrasings equally often, so nothing but the meaning tells them apart.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from megatron_af.demo.questions import Event

CHANGES = ("order", "attribute")
ATTEMPTS = 20


def paraphrases(events: Sequence[Event], rng: random.Random, number: int) -> tuple[str, ...]:
    """``number`` different captions (fewer where there are not as many); the first lists the events plainly."""
    found = {_plainly(events): None}
    for _ in range(ATTEMPTS * number):
        if len(found) >= number:
            break
        found[_freely(events, rng)] = None
    return tuple(found)


def hard_negatives(
    events: Sequence[Event], rng: random.Random, each: int, *, plain: float = 0.25
) -> list[tuple[str, str]]:
    """Kind of change and caption; up to ``each`` different ones of every kind.

    Args:
        plain: share of plain listings; one of M paraphrases is one, so 1 / M. 1 for a test against plain captions.
    """
    found: dict[str, str] = {}
    for change in CHANGES:
        for _ in range(ATTEMPTS * each):
            if sum(kind == change for kind in found.values()) >= each:
                break
            other = altered(events, change, rng)
            if other is not None:
                text = _plainly(other) if rng.random() < plain else _freely(other, rng)
                found.setdefault(text, change)
    return [(change, text) for text, change in found.items()]


def altered(events: Sequence[Event], change: str, rng: random.Random) -> list[Event] | None:
    """The scene with one thing changed.

    ``order``: two events change places. ``attribute``: one kind's loudness or length becomes its opposite, or, where
    two kinds differ in it, they exchange it (binding).
    """
    if change == "order":
        pairs = [(i, j) for i in range(len(events)) for j in range(i) if _says(events[i]) != _says(events[j])]
        if not pairs:
            return None
        i, j = rng.choice(pairs)
        swapped = list(events)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        return swapped
    loudness = rng.random() < 0.5
    kinds = sorted({event.kind for event in events})
    value = {event.kind: event.loud if loudness else event.long for event in events}
    kind = rng.choice(kinds)
    unlike = [other for other in kinds if value[other] != value[kind]]
    flipped = {kind, rng.choice(unlike)} if unlike and rng.random() < 0.5 else {kind}
    return [
        replace(e, loud=e.loud ^ loudness, long=e.long ^ (not loudness)) if e.kind in flipped else e for e in events
    ]


def _says(event: Event) -> tuple[str, bool, bool]:
    return event.kind, event.loud, event.long


def _plainly(events: Sequence[Event]) -> str:
    return _in_order([_plain(event) for event in events])


def _freely(events: Sequence[Event], rng: random.Random) -> str:
    phrase, join = rng.choice(PHRASES), rng.choice(JOINTS)
    return join([phrase(event) for event in events])


def _words(event: Event) -> tuple[str, str]:
    return "loud" if event.loud else "quiet", "long" if event.long else "short"


def _plain(event: Event) -> str:
    return " ".join((*_words(event), event.kind))


def _joined(event: Event) -> str:
    loudness, length = _words(event)
    return f"a {length} and {loudness} {event.kind}"


def _behind(event: Event) -> str:
    loudness, length = _words(event)
    return f"the {event.kind} , {loudness} and {length} ,"


def _in_order(phrases: list[str]) -> str:
    return " then ".join(phrases)


def _followed(phrases: list[str]) -> str:
    return " followed by ".join(phrases)


def _numbered(phrases: list[str]) -> str:
    if len(phrases) == 1:
        return f"only {phrases[0]}"
    return ", ".join([f"first {phrases[0]}", *(f"next {p}" for p in phrases[1:-1]), f"finally {phrases[-1]}"])


def _backwards(phrases: list[str]) -> str:
    return " after ".join(reversed(phrases))


def _before(phrases: list[str]) -> str:
    return " before ".join(phrases)


PHRASES = (_plain, _joined, _behind)
JOINTS = (_in_order, _followed, _numbered, _backwards, _before)
