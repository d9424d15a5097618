"""The language of the demo: captions, hard negatives and questions of a scene whose truth is known.

    scene = Scene(seconds=10.0, events=(Event(kind="piano", start=1.0, end=2.5, loud=True, long=True), ...))
    captions(scene, rng, 2)      # ("loud long piano then quiet short kick twice", ...)
    negatives(scene, rng, 6)     # the same with the order, an attribute, a count or a sound changed
    ask(scene, kinds, rng, 6)    # questions by skill, each with its answer
    dialogue(scene, rng)         # turns, of which the later ones say "it"

A kind that sounds several times in a scene is the same sound every time, so "the piano" is well defined.
"""

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from operator import attrgetter

from megatron_af.data.rows import Question, Span

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TIMES = ("never", "once", "twice", *(f"{number} times" for number in NUMBERS[3:]))
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
PLACES = ("start", "middle", "end")
NOTHING = "nothing"
"""What is heard in a scene without a sound."""
SKILLS = ("order", "counting", "presence", "attribute", "duration", "comparison", "position")


@dataclass(frozen=True, kw_only=True)
class Event:
    kind: str
    start: float
    """Seconds from the beginning of the scene."""
    end: float
    loud: bool
    long: bool

    @property
    def phrase(self) -> str:
        return f"{'loud' if self.loud else 'quiet'} {'long' if self.long else 'short'} {self.kind}"


@dataclass(frozen=True, kw_only=True)
class Scene:
    seconds: float
    events: tuple[Event, ...]
    """In time order; they do not overlap."""

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kind of every event, in order."""
        return tuple(event.kind for event in self.events)

    @cached_property
    def count(self) -> Counter[str]:
        return Counter(self.kinds)

    def first(self, kind: str) -> Event:
        return self.events[self.kinds.index(kind)]

    def third(self, event: Event) -> int:
        """Which third of the scene the middle of the event lies in."""
        return min(2, int((event.start + event.end) / 2 / self.seconds * 3))

    def clear(self, event: Event) -> bool:
        """The middle of the event lies well inside its third."""
        place = (event.start + event.end) / 2 / self.seconds * 3
        return min(abs(place - 1), abs(place - 2)) > 0.12


def captions(scene: Scene, rng: random.Random, number: int) -> tuple[str, ...]:
    """Different ways to say what is heard, in order, with its attributes."""
    return tuple(_caption(scene, rng) for _ in range(number))


def negatives(scene: Scene, kinds: Sequence[str], rng: random.Random, number: int) -> tuple[str, ...]:
    """Captions of scenes that differ in one thing: a sound, the order, an attribute or a count."""
    changes = [_other_kind, _other_kind, _other_order, _other_attribute, _other_count] if scene.events else [_a_sound]
    out: list[str] = []
    while len(out) < number:
        changed = rng.choice(changes)(scene, kinds, rng)
        if [e.phrase for e in changed.events] != [e.phrase for e in scene.events]:
            out.append(_caption(changed, rng))
    return tuple(out)


def spans(scene: Scene, kinds: Sequence[str], rng: random.Random) -> tuple[Span, ...]:
    """Captions of single events: one tells the kind, one the attributes, one the place in the scene.

    Three spans of an event, not three captions of one: positives are summed inside the loss's logarithm, where the
    easiest of them would do. The last one makes the encoder's features know of before and after: neither HTS-AT nor
    rotary positions tell a token where it stands.
    """
    out = []
    for number, event in enumerate(scene.events):
        others = rng.sample([kind for kind in kinds if kind != event.kind], 4)
        changed = [
            dataclasses.replace(event, loud=not event.loud),
            dataclasses.replace(event, long=not event.long),
            dataclasses.replace(event, kind=others[0]),
        ]
        order, place = _order(scene, number), PLACES[scene.third(event)]
        moved = [other for other in range(len(scene.events)) if other != number]
        elsewhere = [
            *(f"{_order(scene, other)} sound {place} {event.kind}" for other in moved[:2]),
            *(f"{order} sound {other} {event.kind}" for other in PLACES if other != place),
        ]
        time = {"start": round(event.start, 2), "end": round(event.end, 2)}
        out.append(Span(**time, captions=(event.kind,), negatives=tuple(others[1:])))
        out.append(Span(**time, captions=(event.phrase,), negatives=tuple(other.phrase for other in changed)))
        out.append(Span(**time, captions=(f"{order} sound {place} {event.kind}",), negatives=tuple(elsewhere)))
    return tuple(out)


def _order(scene: Scene, number: int) -> str:
    return "last" if 0 < number == len(scene.events) - 1 else ORDINALS[number]


def _caption(scene: Scene, rng: random.Random) -> str:
    runs: list[tuple[str, int]] = []
    for event in scene.events:
        if runs and runs[-1][0] == event.phrase:
            runs[-1] = (event.phrase, runs[-1][1] + 1)
        else:
            runs.append((event.phrase, 1))
    joint = rng.choice([" then ", " followed by ", " and then "])
    opening = rng.choice(["", "", "the sound of ", "we hear "])
    return opening + (joint.join(f"{phrase} {TIMES[n]}" if n > 1 else phrase for phrase, n in runs) or NOTHING)


def _a_sound(scene: Scene, kinds: Sequence[str], rng: random.Random) -> Scene:
    loud, long = rng.random() < 0.5, rng.random() < 0.5
    return _replaced(scene, [Event(kind=rng.choice(kinds), start=0.0, end=scene.seconds, loud=loud, long=long)])


def _other_kind(scene: Scene, kinds: Sequence[str], rng: random.Random) -> Scene:
    old, new = rng.choice(scene.kinds), rng.choice([k for k in kinds if k not in scene.count])
    return _replaced(scene, [dataclasses.replace(e, kind=new if e.kind == old else e.kind) for e in scene.events])


def _other_order(scene: Scene, kinds: Sequence[str], rng: random.Random) -> Scene:
    return _replaced(scene, rng.sample(scene.events, len(scene.events)))


def _other_attribute(scene: Scene, kinds: Sequence[str], rng: random.Random) -> Scene:
    kind, loud = rng.choice(scene.kinds), rng.random() < 0.5
    return _replaced(
        scene,
        [
            dataclasses.replace(e, loud=e.loud ^ loud, long=e.long ^ (not loud)) if e.kind == kind else e
            for e in scene.events
        ],
    )


def _other_count(scene: Scene, kinds: Sequence[str], rng: random.Random) -> Scene:
    at = rng.randrange(len(scene.events))
    repeats = scene.kinds[at] in scene.kinds[:at] and rng.random() < 0.5
    middle = () if repeats else (scene.events[at],) * 2
    return _replaced(scene, [*scene.events[:at], *middle, *scene.events[at + 1 :]])


def _replaced(scene: Scene, events: Sequence[Event]) -> Scene:
    return dataclasses.replace(scene, events=tuple(events))


def transcript(scene: Scene) -> str:
    """Everything a question can be about, as text: what the language model learns to answer from."""
    return " then ".join(f"{PLACES[scene.third(event)]} {event.phrase}" for event in scene.events) or NOTHING


def listing(scene: Scene, rng: random.Random) -> list[Question]:
    """Questions answered by the whole scene: dense supervision for training, not part of the evaluation."""
    order = rng.choice(["list the sounds in order", "which sounds are heard, in order?"])
    detail = rng.choice(["describe the recording", "describe every sound"])
    return [
        Question(prompt=order, output=" then ".join(scene.kinds) or NOTHING, skill="listing"),
        Question(prompt=detail, output=transcript(scene), skill="description"),
    ]


def dialogue(scene: Scene, rng: random.Random) -> tuple[Question, ...]:
    """The turns of a conversation about the scene: what is heard, one of its sounds, and then that sound as "it", which
    nobody understands without the turns before."""
    turns = [
        Question(
            prompt=rng.choice(["which sounds are heard, in order?", "list the sounds in order"]),
            output=" then ".join(scene.kinds),
            skill="listing",
        )
    ]
    number = rng.choice([0, len(scene.events) - 1])
    place = "first" if number == 0 else "last"
    event = scene.events[number]
    turns.append(Question(prompt=f"which of these comes {place}?", output=event.kind, skill="order"))
    about = [
        Question(prompt="is it loud or quiet?", output="loud" if event.loud else "quiet", skill="attribute"),
        Question(prompt="is it long or short?", output="long" if event.long else "short", skill="duration"),
        Question(prompt="how often is it heard?", output=NUMBERS[scene.count[event.kind]], skill="counting"),
    ]
    return (*turns, *rng.sample(about, 2))


def ask(scene: Scene, kinds: Sequence[str], rng: random.Random, number: int) -> list[Question]:
    """``number`` different questions, spread over the skills that the scene has a question for."""
    by_skill: dict[str, list[Question]] = {}
    for question in _questions(scene, kinds, rng):
        by_skill.setdefault(question.skill, []).append(question)
    for found in by_skill.values():
        rng.shuffle(found)
    chosen: list[Question] = []
    while len(chosen) < number and any(by_skill.values()):
        for skill in rng.sample(sorted(by_skill), len(by_skill)):
            if by_skill[skill] and len(chosen) < number:
                chosen.append(by_skill[skill].pop())
    return chosen


def _questions(scene: Scene, kinds: Sequence[str], rng: random.Random) -> list[Question]:
    found: list[Question] = []

    def add(skill: str, output: str, *prompts: str) -> None:
        found.append(Question(prompt=rng.choice(prompts), output=output, skill=skill))

    events, heard, count = scene.events, list(scene.count), scene.count
    once = [kind for kind in heard if count[kind] == 1]
    missing = [kind for kind in kinds if kind not in count]

    # order
    first, last = (events[0].kind, events[-1].kind) if events else (NOTHING, NOTHING)
    add("order", first, "what is the first sound?", "which sound comes first?")
    add("order", last, "what is the last sound?", "which sound comes last?")
    if len(events) > 2:
        add("order", events[1].kind, "what is the second sound?", "which sound comes second?")
    for before, after in pairwise(events):
        if before.kind in once:
            add("order", after.kind, f"what comes right after the {before.kind}?")
        if after.kind in once:
            add("order", before.kind, f"what comes right before the {after.kind}?")

    # counting
    add("counting", NUMBERS[len(events)], "how many sounds are heard?", "how many sounds are there?")
    if not events:
        absent = rng.sample(missing, 2)
        add("counting", NUMBERS[0], f"how many times is the {absent[0]} heard?", f"how often is the {absent[0]} heard?")
        add("presence", "no", f"is there a {absent[1]}?", f"is a {absent[1]} heard?")
        return found  # nothing else can be asked
    often = max(heard, key=lambda kind: (count[kind], rng.random()))
    counted = [often, rng.choice(heard)] if count[often] > 1 else [rng.choice(heard)]
    for kind in dict.fromkeys(counted):
        add("counting", NUMBERS[count[kind]], f"how many times is the {kind} heard?", f"how often is the {kind} heard?")

    # presence
    present, absent = rng.choice(heard), rng.sample(missing, 3)
    options = rng.sample([present, absent[0], absent[1]], 3)
    add("presence", present, f"which of these is heard: {options[0]}, {options[1]} or {options[2]}?")
    asked, truth = (present, "yes") if rng.random() < 0.5 else (absent[2], "no")
    add("presence", truth, f"is there a {asked}?", f"is a {asked} heard?")

    # attribute and duration
    for skill, words, of in (
        ("attribute", ("quiet", "loud"), attrgetter("loud")),
        ("duration", ("short", "long"), attrgetter("long")),
    ):
        kind = rng.choice(heard)
        add(skill, words[of(scene.first(kind))], f"is the {kind} {words[1]} or {words[0]}?")
        for value in (0, 1):
            those = [kind for kind in heard if of(scene.first(kind)) == value]
            if len(those) == 1 and len(heard) > 1:
                add(skill, those[0], f"which sound is {words[value]}?")

    # comparison
    if len(heard) > 1:
        a, b = (scene.first(kind) for kind in rng.sample(heard, 2))
        if a.loud != b.loud:
            add("comparison", (a if a.loud else b).kind, f"which is louder, the {a.kind} or the {b.kind}?")
        if a.long != b.long:
            add("comparison", (a if a.long else b).kind, f"which lasts longer, the {a.kind} or the {b.kind}?")
        if count[a.kind] != count[b.kind]:
            more = a if count[a.kind] > count[b.kind] else b
            add("comparison", more.kind, f"which is heard more often, the {a.kind} or the {b.kind}?")
    if len(once) > 1:
        a, b = (scene.first(kind) for kind in rng.sample(once, 2))
        add("comparison", (a if a.start < b.start else b).kind, f"which comes first, the {a.kind} or the {b.kind}?")

    # position in time
    sure = [kind for kind in once if scene.clear(scene.first(kind))]
    if sure:
        kind = rng.choice(sure)
        add("position", PLACES[scene.third(scene.first(kind))], f"when is the {kind} heard?")
    for place in range(3):
        there = [event for event in events if scene.third(event) == place]
        if len({event.kind for event in there}) == 1 and all(map(scene.clear, events)):
            where = "in the middle" if place == 1 else f"at the {PLACES[place]}"
            add("position", there[0].kind, f"which sound is heard {where}?")
    return found
