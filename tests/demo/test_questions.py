"""The demo's language says what is true of a scene, and its negatives say what is not."""

import random

import pytest

from megatron_af.demo.questions import NUMBERS, SKILLS, Event, Scene, ask, captions, dialogue, listing, negatives, spans

KINDS = ["bell", "drum", "horn", "piano", "siren", "voice", "wind"]


def event(kind: str, start: float, *, loud: bool = True, long: bool = False) -> Event:
    return Event(kind=kind, start=start, end=start + (2.0 if long else 0.5), loud=loud, long=long)


SCENE = Scene(
    seconds=10.0,
    events=(event("drum", 0.5), event("piano", 4.0, loud=False, long=True), event("drum", 7.0), event("bell", 9.0)),
)
ANSWERS = {
    "what is the first sound?": "drum",
    "which sound comes last?": "bell",
    "what is the second sound?": "piano",
    "what comes right after the piano?": "drum",
    "what comes right before the piano?": "drum",
    "what comes right before the bell?": "drum",
    "how many sounds are heard?": "four",
    "how often is the drum heard?": "two",
    "how many times is the bell heard?": "one",
    "is the piano loud or quiet?": "quiet",
    "which sound is quiet?": "piano",
    "is the drum long or short?": "short",
    "which sound is long?": "piano",
    "which is louder, the drum or the piano?": "drum",
    "which lasts longer, the bell or the piano?": "piano",
    "which is heard more often, the drum or the bell?": "drum",
    "which comes first, the bell or the piano?": "piano",
    "when is the bell heard?": "end",
    "when is the piano heard?": "middle",
    "which sound is heard in the middle?": "piano",
    "which sound is heard at the start?": "drum",
}


def asked(scene: Scene, rounds: int = 300) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for seed in range(rounds):
        for question in ask(scene, KINDS, random.Random(seed), 8):
            assert question.skill in SKILLS
            found.setdefault(question.prompt, set()).add(question.output)
    return found


def test_answers_are_true() -> None:
    found = asked(SCENE)
    assert all(len(answers) == 1 for answers in found.values())
    for prompt, answer in ANSWERS.items():
        assert found[prompt] == {answer}, prompt
    for prompt, (answer,) in found.items():
        if prompt.startswith("which of these is heard"):
            assert answer in SCENE.kinds and sum(kind in prompt for kind in SCENE.count) == 1
        if prompt.startswith("is there a"):
            kind = prompt.removeprefix("is there a ").rstrip("?")
            assert answer == ("yes" if kind in SCENE.kinds else "no")
    assert "what comes right after the drum?" not in found  # it comes twice
    assert "which sound is heard at the end?" not in found  # two sounds are


def test_every_skill_is_asked_and_nothing_twice() -> None:
    questions = ask(SCENE, KINDS, random.Random(0), 7)
    assert {question.skill for question in questions} == set(SKILLS)
    assert len({question.prompt for question in ask(SCENE, KINDS, random.Random(0), 40)}) > 15


def test_one_sound_alone() -> None:
    found = asked(Scene(seconds=10.0, events=(event("wind", 3.0, long=True),)))
    assert found["how many sounds are heard?"] == {"one"}
    assert found["what is the first sound?"] == found["which sound comes last?"] == {"wind"}
    assert not any("second" in prompt or "louder" in prompt for prompt in found)


def test_no_sound_at_all() -> None:
    silence = Scene(seconds=10.0, events=())
    found = asked(silence)
    assert found["how many sounds are heard?"] == found["how often is the bell heard?"] == {"zero"}
    assert found["what is the first sound?"] == found["which sound comes last?"] == {"nothing"}
    assert found["is there a siren?"] == {"no"} and set.union(*found.values()) == {"zero", "nothing", "no"}
    assert {question.output for question in listing(silence, random.Random(0))} == {"nothing"}
    assert captions(silence, random.Random(1), 1)[0].endswith("nothing")
    assert not spans(silence, KINDS, random.Random(0))
    assert all(text.split()[-1] in KINDS for text in negatives(silence, KINDS, random.Random(0), 8))


@pytest.mark.parametrize("seed", range(20))
def test_negatives_differ_in_one_thing(seed: int) -> None:
    rng = random.Random(seed)
    true = {text.split("of ")[-1].removeprefix("we hear ") for text in captions(SCENE, rng, 30)}
    false = {text.split("of ")[-1].removeprefix("we hear ") for text in negatives(SCENE, KINDS, rng, 12)}
    assert "loud short drum then quiet long piano then loud short drum then loud short bell" in true
    assert not true & false


def test_many_repeats_are_counted_in_words() -> None:
    scene = Scene(seconds=30.0, events=tuple(event("bell", float(t)) for t in range(8)))
    (caption,) = captions(scene, random.Random(1), 1)
    assert caption.endswith("loud short bell eight times")
    assert len(negatives(scene, KINDS, random.Random(0), 12)) == 12
    assert NUMBERS[8] in {q.output for q in ask(scene, KINDS, random.Random(0), 20)}


def test_spans_tell_kinds_and_attributes_apart() -> None:
    first, second, third, *_, last = spans(SCENE, KINDS, random.Random(0))
    assert (first.start, first.end, first.captions) == (0.5, 1.0, ("drum",))
    assert "drum" not in first.negatives
    assert second.captions == ("loud short drum",)
    assert {"quiet short drum", "loud long drum"} < set(second.negatives)
    assert third.captions == ("first sound start drum",)
    assert {"second sound start drum", "first sound end drum"} < set(third.negatives)
    assert last.captions == ("last sound end bell",)


def test_listing_is_the_whole_truth() -> None:
    order, detail = listing(SCENE, random.Random(0))
    assert order.output == "drum then piano then drum then bell"
    assert detail.output.startswith("start loud short drum then middle quiet long piano then")


def test_a_conversation_says_it_of_the_sound_before() -> None:
    truth = {"loud": {"drum": "loud", "bell": "loud"}, "long": {"drum": "short", "bell": "short"},
             "often": {"drum": "two", "bell": "one"}}  # fmt: skip
    seen = set()
    for seed in range(40):
        turns = dialogue(SCENE, random.Random(seed))
        assert turns[0].output == "drum then piano then drum then bell"
        place, kind = turns[1].prompt.split()[-1].rstrip("?"), turns[1].output
        assert kind == {"first": "drum", "last": "bell"}[place]
        assert len({turn.prompt for turn in turns}) == len(turns) == 4
        for turn in turns[2:]:
            assert "it" in turn.prompt.split() and not set(KINDS) & set(turn.prompt.split())
            (about,) = (word for word in truth if word in turn.prompt)
            assert turn.output == truth[about][kind]
            seen.add((about, kind))
    assert len(seen) == 6
