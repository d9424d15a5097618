"""Every answer about a long recording is what its labels say, found by other means than it was made."""

import random
import re
from collections import defaultdict

import pytest

from megatron_af.data.rows import Question
from megatron_af.prepare.long_questions import long_questions
from megatron_af.prepare.strong_labels import Sound

LABELS = ["dog", "rain", "bell", "car", "wind", "door", "cat", "siren"]
SECONDS = 40.0


def recording(rng: random.Random) -> list[Sound]:
    found, at = [], 0.0
    while (at := at + rng.uniform(0.1, 12.0)) < SECONDS - 8:
        found.append(Sound(label=rng.choice(LABELS[:5]), start=at, end=at + rng.uniform(0.3, 8.0)))
    return found


def true_answers(question: Question, sounds: list[Sound]) -> set[str]:
    """By brute force over hundredths of a second, from the prompt alone: all labels that it could mean."""
    heard = [{s.label for s in sounds if s.start <= i / 100 < s.end} for i in range(int(SECONDS * 100))]
    if question.skill == "long: temporal":
        began = list(dict.fromkeys(label for now in heard for label in sorted(now)))
        return {began[0] if "before" in question.prompt else began[-1]}
    if question.skill == "long: needle":
        labels = {s.label for s in sounds}
        lasts = {one: sum(s.end - s.start for s in sounds if s.label == one) for one in labels}
        return {label for label in labels if lasts[label] <= SECONDS / 10 and lasts[label] == min(lasts.values())}
    place = re.fullmatch(r"which sound is heard in the (\w+) third of the recording\?", question.prompt)
    assert place and question.skill == "long: subscene"
    begin = {"first": 0, "middle": 1, "last": 2}[place[1]] * len(heard) // 3
    return set().union(*heard[begin : begin + len(heard) // 3])


def test_answers_are_true_and_no_other_option_is() -> None:
    made: dict[str, int] = defaultdict(int)
    for seed in range(400):
        rng = random.Random(seed)
        sounds = recording(rng)
        for question in long_questions(sounds, SECONDS, LABELS, rng):
            made[question.skill] += 1
            assert true_answers(question, sounds) == {question.output}, (question, sounds)
            assert question.options[0] == question.output and 2 <= len(question.options) <= 4
            assert len(set(question.options)) == len(question.options)
    assert made.keys() == {"long: temporal", "long: needle", "long: subscene"} and min(made.values()) > 20, made


@pytest.mark.parametrize(
    "sounds",
    [
        [],
        [Sound(label="dog", start=1.0, end=2.0)],
        [Sound(label="dog", start=1.0, end=5.0), Sound(label="rain", start=1.2, end=5.2)],
    ],
    ids=["nothing", "one alone", "two at once"],
)
def test_what_labels_leave_open_is_not_asked(sounds: list[Sound]) -> None:
    assert [q for seed in range(30) for q in long_questions(sounds, SECONDS, LABELS, random.Random(seed))] == []
