"""Every answer is what the labels say, checked by other means than it was made; what they leave open is not asked."""

import random
import re
from collections import Counter, defaultdict

from megatron_af.data.rows import Question
from megatron_af.prepare.skill_questions import questions
from megatron_af.prepare.strong_labels import Sound
from tests.prepare.labelled_scene import LABELS, scene


def true_answer(question: Question, sounds: list[Sound]) -> str:
    """By brute force, from the prompt alone."""
    prompt, counts = question.prompt, Counter(s.label for s in sounds)
    first = {label: min(s.start for s in sounds if s.label == label) for label in counts}
    if question.skill.startswith("counting"):
        return str(counts[re.fullmatch(r"how many times is the (\w+) heard\?", prompt)[1]])  # type: ignore[index]
    if question.skill == "temporal: order":
        return ", then ".join(sorted(question.output.split(", then "), key=first.__getitem__))
    if question.skill == "temporal: grounding":
        label = re.fullmatch(r"when is the (\w+) heard\?", prompt)[1]  # type: ignore[index]
        (sound,) = (s for s in sounds if s.label == label)
        return f"from {sound.start:.1f} to {sound.end:.1f} seconds"
    if question.skill == "temporal: referring":
        way, label = re.fullmatch(r"which sound begins right (after|before) the (\w+)\?", prompt).groups()  # type: ignore[union-attr]
        begins = [s.label for s in sorted(sounds, key=lambda s: s.start)]  # of those that are heard again as well
        answer = begins[begins.index(label) + (1 if way == "after" else -1)]
        assert counts[label] == counts[answer] == 1
        return answer
    if question.skill == "temporal: attribute":
        label = re.match(r"the (\w+) is heard twice", prompt)[1]  # type: ignore[index]
        one, two = (s.end - s.start for s in sounds if s.label == label)
        return "longer" if two > one else "shorter"
    assert question.skill == "attribute identification"
    return max((s for s in sounds if counts[s.label] == 1), key=lambda s: s.end - s.start).label


def test_answers_are_true_and_no_other_option_is() -> None:
    made: dict[str, int] = defaultdict(int)
    for seed in range(600):
        rng = random.Random(seed)
        sounds = scene(rng)
        seconds = sounds[-1].end + 1
        for question in questions(sounds, seconds, LABELS, rng):
            made[question.skill] += 1
            assert question.output == true_answer(question, sounds), (question, sounds)
            assert question.options[0] == question.output and 2 <= len(question.options) <= 4
            assert len(set(question.options)) == len(question.options)
    assert made.keys() == {"temporal: order", "temporal: attribute", "temporal: referring", "temporal: grounding",
                           "counting: level 1", "counting: level 2", "counting: level 3",
                           "attribute identification"}  # fmt: skip
    assert min(made.values()) > 20, made


def test_what_labels_leave_open_is_not_asked() -> None:
    together = [Sound(label=label, start=0.1 * i, end=5.0) for i, label in enumerate(("dog", "rain", "bell"))]
    skills = {q.skill for seed in range(30) for q in questions(together, 20.0, LABELS, random.Random(seed))}
    assert not skills & {"temporal: order", "temporal: referring", "attribute identification"}
    many = [Sound(label="dog", start=float(i), end=i + 0.5) for i in range(12)]
    assert list(questions(many, 20.0, LABELS, random.Random(0))) == [], "nobody counts to twelve"


def test_levels_of_counting() -> None:
    dogs = [Sound(label="dog", start=s, end=s + 1) for s in (1.0, 3.0)]
    for more, level in (([], 1), ([(6.0, 8.0)], 2), ([(3.5, 8.0)], 3)):
        sounds = dogs + [Sound(label="rain", start=a, end=b) for a, b in more]
        asked = [q for seed in range(20) for q in questions(sounds, 10.0, LABELS, random.Random(seed))]
        assert {q.skill for q in asked if "dog" in q.prompt and "how many" in q.prompt} == {f"counting: level {level}"}
