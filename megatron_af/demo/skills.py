"""What AudioSkills and LongAudio ask, asked of the demo's scenes by the generators that ask it of labelled recordings.

    asked = papers_questions({"test-17": scene}, seed=0)        # {"test-17": (Question, …)}, the options in the prompt
    asked = papers_questions({"text-3": told_apart(scene)}, seed=0)

The scenes' events are strong labels (``prepare/skills.py``), and right options stand as often at each place as in
anybody's questions (``prepare/balance.py``). The demo shows options within the question, as in its own
(``questions.py``), and they are answered by their words. No question is left out for an answer that is right often: a
tenth of those that count would be left, and what guessing is worth, the demo measures.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from megatron_af.data.rows import Clip, Question, Row, Span
from megatron_af.demo.questions import Event, Scene
from megatron_af.prepare.balance import balanced
from megatron_af.prepare.skills import of_labels

LEFT_OUT = frozenset({"temporal: grounding"})
"""Answered by times ("from 1.2 to 2.5 seconds"): in scenes of 10 seconds a hundred numbers, each a word of its own."""
LONG_SECONDS = 15.0
"""Scenes of so many seconds are asked LongAudio's questions, too: the demo's long ones, all of them."""
SECONDS = {False: 0.6, True: 2.0}
"""How long a short or a long sound lasts in a scene that is only told."""


def papers_questions(scenes: Mapping[str, Scene], seed: int) -> dict[str, tuple[Question, ...]]:
    """By the name of its scene; scenes that there is no such question about are left out."""
    labelled = [_labelled(name, scene) for name, scene in scenes.items()]
    made = of_labels(labelled, seed, Counter(), LONG_SECONDS)
    chosen = [replace(row, questions=tuple(q for q in row.questions if q.skill not in LEFT_OUT)) for row in made]
    return {row.id: tuple(map(_shown, row.questions)) for row in balanced(chosen, seed) if row.questions}


def skill_rows(rows: Sequence[tuple[Row, Scene, str]], seed: int, *, own: bool) -> list[Row]:
    """The papers' questions about these rows.

    Args:
        rows: with their scenes, and what stands before each question.
        own: behind the rows' own questions, for training; else alone, and of rows that there are any about.
    """
    asked = papers_questions({row.id: scene for row, scene, _ in rows}, seed)
    made = []
    for row, _, before in rows:
        skills = tuple(replace(q, prompt=before + q.prompt) for q in asked.get(row.id, ()))
        if own or skills:
            questions = (*row.questions, *skills) if own else skills
            made.append(Row(id=row.id, clips=row.clips, questions=questions, task=row.task))
    return made


def told_apart(scene: Scene) -> Scene:
    """A scene that is only told, as labels: what its transcript says, and nothing besides. All sounds of a third lie in
    it, in their order, and all long ones are equally long."""
    third = 100.0 * (len(scene.events) + 1)
    begin = [third * scene.third(event) + 100.0 * place for place, event in enumerate(scene.events, 1)]
    events = tuple(
        Event(kind=e.kind, start=b - 50, end=b - 50 + SECONDS[e.long], loud=e.loud, long=e.long)
        for e, b in zip(scene.events, begin, strict=True)
    )
    return Scene(seconds=3 * third, events=events)


def _labelled(name: str, scene: Scene) -> Row:
    """A scene as somebody's row with strong labels."""
    spans = tuple(Span(start=e.start, end=e.end, captions=(e.kind,)) for e in scene.events)
    return Row(id=name, clips=(Clip(path=name, duration=scene.seconds),), spans=spans)


def _shown(question: Question) -> Question:
    """With its options in the prompt: "… the piano: a, b or c?"."""
    *before, last = question.options
    between = "; " if any("," in option for option in question.options) else ", "
    return replace(question, prompt=f"{question.prompt.rstrip('?')}: {between.join(before)} or {last}?")
