"""The papers' questions about scenes: true, with their options to read, and of a told scene no more than it tells."""

import random
import re
from collections import Counter, defaultdict

import numpy as np

from megatron_af.data.rows import Clip, Question, Row
from megatron_af.demo.questions import PLACES, Event, Scene, ask, transcript
from megatron_af.demo.scenes import _told
from megatron_af.demo.skills import papers_questions, skill_rows, told_apart

KINDS = ["bell", "drum", "horn", "piano", "siren", "voice", "wind"]


def mixed(seed: int, seconds: float = 10.0) -> Scene:
    """A scene as the demo mixes them: a kind is long or short wherever it comes, and nothing overlaps."""
    rng = random.Random(seed)
    lasts = {kind: rng.uniform(1.6, 2.6) if rng.random() < 0.5 else rng.uniform(0.4, 0.8) for kind in KINDS}
    sequence = [rng.choice(KINDS) for _ in range(rng.randint(1, 3 if seconds < 15 else 6))]
    events, at = [], 0.0
    for kind in sequence:
        at += rng.uniform(0.4, 0.6)
        events.append(Event(kind=kind, start=at, end=at + lasts[kind], loud=True, long=lasts[kind] > 1))
        at += lasts[kind]
    return Scene(seconds=seconds, events=tuple(events))


def true_answer(question: Question, scene: Scene) -> str:
    """By brute force, from what is asked alone."""
    asked, _, _ = question.prompt.partition(": ")
    count, last = scene.count, scene.seconds
    once = [event.kind for event in scene.events if count[event.kind] == 1]
    lasting = {kind: sum(e.end - e.start for e in scene.events if e.kind == kind) for kind in count}
    if found := re.fullmatch(r"how many times is the (\w+) heard", asked):
        return str(count[found[1]])
    if asked == "in which order do these sounds begin":
        return ", then ".join(once[:4])
    if found := re.fullmatch(r"which sound begins right (after|before) the (\w+)", asked):
        return scene.kinds[scene.kinds.index(found[2]) + (1 if found[1] == "after" else -1)]
    if asked == "which of these sounds lasts longest":
        return max(once, key=lasting.__getitem__)
    if found := re.fullmatch(r"which sound begins (after|before) all the others", asked):
        first = list(dict.fromkeys(scene.kinds))
        return first[-1 if found[1] == "after" else 0]
    if asked == "which sound is heard for a moment only":
        return min(lasting, key=lasting.__getitem__)
    found = re.fullmatch(r"which sound is heard in the (first|middle|last) third of the recording", asked)
    assert found, asked
    place = ["first", "middle", "last"].index(found[1])
    begin, end = place * last / 3, (place + 1) * last / 3
    (answer,) = {event.kind for event in scene.events if event.start < end and event.end > begin}
    return answer


def test_questions_are_the_generators_and_true() -> None:
    """By the papers' names; LongAudio's of long scenes alone, and nothing that is answered by a time."""
    short = {"temporal: order", "temporal: referring", "counting: level 1", "counting: level 2"}
    short |= {"attribute identification"}
    for seconds, skills in ((10.0, short), (20.0, short | {"long: temporal", "long: needle", "long: subscene"})):
        scenes = {f"scene-{seed}": mixed(seed, seconds) for seed in range(200)}
        found = papers_questions(scenes, 0)
        assert {question.skill for questions in found.values() for question in questions} == skills
        for name, questions in found.items():
            for question in questions:
                assert question.output == true_answer(question, scenes[name]), (question, scenes[name])


def test_options_stand_in_the_prompt_and_say_nothing_by_their_place() -> None:
    found = papers_questions({f"scene-{seed}": mixed(seed) for seed in range(400)}, 0)
    places = defaultdict[int, Counter[int]](Counter)
    for question in (question for questions in found.values() for question in questions):
        *before, last = question.options
        between = "; " if question.skill == "temporal: order" else ", "
        assert question.prompt.endswith(f": {between.join(before)} or {last}?")
        if question.skill == "temporal: referring":
            places[len(question.options)][question.options.index(question.output)] += 1
    assert places and all(max(p.values()) - min(p.values()) <= 1 and len(p) == n for n, p in places.items())


def test_a_told_scene_is_asked_what_its_transcript_says() -> None:
    """Whoever reads the transcript alone knows every answer: of two long sounds nobody is asked which is longer."""
    told = {f"text-{seed}": _told(KINDS, np.random.default_rng(seed)) for seed in range(400)}
    found = papers_questions({name: told_apart(scene) for name, scene in told.items()}, 0)
    skills = Counter(question.skill for questions in found.values() for question in questions)
    assert {"temporal: order", "attribute identification", "long: needle", "long: subscene"} < skills.keys()
    assert not any(skill.startswith(("counting: level 3", "temporal: attribute")) for skill in skills)
    for name, questions in found.items():
        words = [part.split() for part in transcript(told[name]).split(" then ")]
        read = Scene(
            seconds=90.0,
            events=tuple(
                Event(kind=kind, start=b, end=b + (2 if long == "long" else 0.6), loud=True, long=long == "long")
                for place, (where, _, long, kind) in enumerate(words)
                for b in [30 * PLACES.index(where) + 3 * place]
            ),
        )
        for question in questions:
            assert question.output == true_answer(question, read), (question, words)
            if question.skill == "attribute identification":
                assert sum(long == "long" for _, _, long, kind in words if kind in question.options) == 1


def test_rows_ask_them_behind_their_own_questions_or_alone() -> None:
    rows = []
    for seed in range(20):
        scene = mixed(seed)
        own = ask(scene, KINDS, random.Random(seed), 3)
        row = Row(id=f"r{seed}", clips=(Clip(path=f"{seed}.flac", duration=10.0),), questions=tuple(own), task="t",
                  captions=("a bell",))  # fmt: skip
        rows.append((row, scene, "told. " if seed % 2 else ""))
    learnt, asked = skill_rows(rows, 0, own=True), skill_rows(rows, 0, own=False)
    assert [(row.id, row.clips, row.questions[:3]) for row in learnt] == [
        (row.id, row.clips, row.questions) for row, _, _ in rows
    ]
    assert not any(row.captions for row in learnt)
    alone = {row.id: row.questions for row in asked}
    assert 0 < len(alone) < 20 and all(alone.values())
    assert {row.id: row.questions[3:] for row in learnt if row.questions[3:]} == alone
    for row, _, before in rows:
        assert all(question.prompt.startswith(before) for question in alone.get(row.id, ()))
    assert any(question.prompt.startswith("told. ") for questions in alone.values() for question in questions)


def test_silence_is_asked_nothing() -> None:
    assert papers_questions({"quiet": Scene(seconds=10.0, events=())}, 0) == {}
