"""Rule-based captions: paraphrases all say the same, altered ones all say something else."""

import random

import pytest

from megatron_af.demo.caption_rules import altered, hard_negatives, paraphrases
from megatron_af.demo.questions import Event


def event(kind: str, loud: bool = True, long: bool = False) -> Event:
    return Event(kind=kind, start=0.0, end=1.0, loud=loud, long=long)


def meaning(caption: str) -> list[tuple[str, ...]]:
    """Reads a caption back: for each event in time order, its words."""
    text = caption.replace(",", " ")
    backwards = " after " in text
    for joint in (" then ", " followed by ", " after ", " before ", " next ", " finally "):
        text = text.replace(joint, "|")
    parts = [tuple(sorted(set(p.split()) - {"first", "only", "a", "the", "and"})) for p in text.split("|")]
    parts = [p for p in parts if p]
    return parts[::-1] if backwards else parts


SCENE = [event("bell"), event("dog", loud=False), event("bell"), event("rain", long=True)]


def test_paraphrases_differ_and_mean_the_same():
    for seed in range(20):
        said = paraphrases(SCENE, random.Random(seed), 6)
        assert len(set(said)) == 6
        assert said[0] == "loud short bell then quiet short dog then loud short bell then loud long rain"
        assert {tuple(meaning(text)) for text in said} == {tuple(meaning(said[0]))}


def test_negatives_mean_something_else_in_the_same_phrasings():
    truth = meaning(paraphrases(SCENE, random.Random(0), 1)[0])
    for seed in range(20):
        negatives = hard_negatives(SCENE, random.Random(seed), 3)
        assert sorted(kind for kind, _ in negatives) == ["attribute"] * 3 + ["order"] * 3
        assert len({text for _, text in negatives}) == 6
        for kind, text in negatives:
            assert meaning(text) != truth
            if kind == "order":
                assert sorted(meaning(text)) == sorted(truth)


def test_form_gives_nothing_away():
    """Plain listings are as common among true captions as among altered ones."""
    true = [text for seed in range(300) for text in paraphrases(SCENE, random.Random(seed), 4)]
    other = [text for seed in range(300) for _, text in hard_negatives(SCENE, random.Random(seed), 2)]

    def share(texts: list[str], word: str) -> float:
        return sum(word in text for text in texts) / len(texts)

    for word in (" then ", " after ", " before ", "first ", "the ", " and "):
        assert share(true, word) == pytest.approx(share(other, word), abs=0.06), word
    assert all(" then " in text for _, text in hard_negatives(SCENE, random.Random(0), 2, plain=1))


def test_what_cannot_change_does_not():
    assert altered([event("dog")], "order", random.Random(0)) is None
    assert altered([event("dog"), event("dog")], "order", random.Random(0)) is None
    assert [kind for kind, _ in hard_negatives([event("dog")], random.Random(0), 2)] == ["attribute"] * 2
    assert len(paraphrases([event("dog")], random.Random(0), 50)) < 50


@pytest.mark.parametrize("seed", range(10))
def test_attribute_changes_keep_a_kind_the_same_sound(seed: int):
    changed = altered(SCENE, "attribute", random.Random(seed))
    assert [e.kind for e in changed] == [e.kind for e in SCENE]
    assert (changed[0].loud, changed[0].long) == (changed[2].loud, changed[2].long)
    assert changed != SCENE
