"""Options found in answers: right, wrong, or unparseable; never drawn."""

import random
import re
from collections.abc import Sequence

import pytest

from megatron_af.evaluate.answered import Said
from megatron_af.evaluate.metrics.base import Means
from megatron_af.evaluate.metrics.choices import Exact, Letter, Likelihood, Match

OPTIONS = ("Rain on a roof", "A dog", "A dog barking", "Wind")


def said(heard: str, wanted: str = "A dog", options: tuple[str, ...] = OPTIONS, **more: object) -> Said:
    return Said(id="1", prompt="?", references=(wanted,), options=options, heard=heard, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("heard", "wanted", "match", "letter"),
    [
        ("a dog", "A dog", 1.0, 1.0),
        ("It is A DOG, I think.", "A dog", 1.0, None),
        ("(B) A dog", "A dog", 1.0, 1.0),
        ("B", "A dog", None, 1.0),
        ("b.", "A dog", None, 1.0),
        ("The answer is B", "A dog", None, 1.0),
        ("The correct answer is: B", "A dog", None, 1.0),
        ("Answer: A dog", "A dog", 1.0, 1.0),
        ("The answer is A dog barking.", "A dog barking", 1.0, 1.0),
        ("The answer is A, I think", "A dog", None, 0.0),
        ("Answer: (C)", "A dog", None, 0.0),
        ("(A) or (B)", "A dog", None, None),
        ("(Z) neither", "A dog", None, None),
        ("a dog barking", "A dog", 0.0, 0.0),
        ("a dog barking", "A dog barking", 1.0, 1.0),
        ("a dog", "A dog barking", 0.0, 0.0),
        ("a dog and the wind", "A dog", None, None),
        ("the wind", "A dog", 0.0, None),
        ("wind", "A dog", 0.0, 0.0),
        ("a cat", "A dog", None, None),
        ("I hear nothing of the kind", "A dog", None, None),
        ("", "A dog", None, None),
    ],
)
def test_what_an_answer_means(heard: str, wanted: str, match: float | None, letter: float | None) -> None:
    one = [said(heard, wanted)]
    assert Match(Means()).score(one)["match"].each == [match]
    assert Letter(Means()).score(one)["letter"].each == [letter]


def by_the_rule(wanted: str, heard: str, options: Sequence[str]) -> bool:
    """MMAU's rule (evaluation.py, ``string_match``): every word of the right option is there, and none that another
    option has and the right one has not; words are runs of letters, digits and underscores."""
    words, right = (set(re.findall(r"\w+", text.lower())) for text in (heard, wanted))
    foreign = {word for option in options for word in re.findall(r"\w+", option.lower())} - right
    return bool(words) and right <= words and not words & foreign


def test_match_follows_mmaus_rule() -> None:
    rng = random.Random(0)
    words = ("a", "dog", "barks", "twice", "rain", "(B)", "the", "C#", "roof,", "It's")
    right = 0
    for _ in range(3000):
        options = tuple(dict.fromkeys(" ".join(rng.choices(words, k=rng.randint(1, 3))) for _ in range(4)))
        wanted, heard = rng.choice(options), " ".join(rng.choices(words, k=rng.randint(0, 5)))
        expected = by_the_rule(wanted, heard, options)
        assert (Match(Means()).score([said(heard, wanted, options)])["match"].each == [1.0]) is expected
        right += expected
    assert 50 < right < 2900


def test_answers_without_options() -> None:
    free = [said("It is a dog.", options=()), said("rain", options=()), said("", options=())]
    assert Match(Means()).score(free)["match"].each == [1.0, 0.0, None]
    assert Letter(Means()).score(free)["letter"].each == [None, None, None]


def test_exact_knows_every_reference() -> None:
    two = Said(id="1", prompt="?", references=("two", "2"), heard=" TWO ")
    scores = Exact(Means()).score([two, said("a dog."), said("dog")])["exact"]
    assert scores.each == [1.0, 0.0, 0.0] and scores.value == pytest.approx(100 / 3)


def test_the_likeliest_option_is_by_character() -> None:
    shorter = said("", "A dog", logprobs=(-28.0, -5.5, -13.0, -8.0))  # per character: -2, -1.1, -1, -2
    scores = Likelihood(Means()).score([shorter, said("", "A dog barking", logprobs=shorter.logprobs), said("")])
    assert scores["likelihood"].each == [0.0, 1.0, None]


def test_options_that_end_with_a_full_stop_or_begin_with_a_letter_are_known_by_their_words() -> None:
    sentences = ("It rains.", "It hails.")
    for heard in ("It rains.", "it rains", "(A) It rains.", "a"):
        assert Letter(Means()).score([said(heard, "It rains.", sentences)])["letter"].each == [1.0], heard
    keys = ("A major", "D major", "C major", "B flat major")
    for heard in ("The answer is C major", "The correct answer is: C major.", "(C) C major", "C. C major", "answer: C"):
        assert Letter(Means()).score([said(heard, "C major", keys)])["letter"].each == [1.0], heard
    assert Letter(Means()).score([said("The answer is D major", "D major", keys)])["letter"].each == [1.0]
    assert Letter(Means()).score([said("the answer is B flat major", "D major", keys)])["letter"].each == [0.0]


@pytest.mark.parametrize("heard", ["rain!", '"rain"', "'Rain'.", "rain,", "ra\u200bin", "rain"])
def test_marks_around_an_option_do_not_hide_it(heard: str) -> None:
    assert Letter(Means()).score([said(heard, "rain", ("hail", "rain"))])["letter"].each == [1.0]
    assert Letter(Means()).score([said(heard, "hail", ("hail", "rain"))])["letter"].each == [0.0]


def test_options_that_differ_by_marks_alone_are_told_apart() -> None:
    for heard, worth in (("Really?", 1.0), ("really!", 0.0), ("A", 1.0), ("(B)", 0.0), ("really", None)):
        assert Letter(Means()).score([said(heard, "Really?", ("Really?", "Really!"))])["letter"].each == [worth], heard


def test_what_has_no_words_is_matched_by_nothing() -> None:
    marks = [said("", "?", ("?", "rain")), said("rain", "?", ()), said("...", "?", ("?", "rain"))]
    assert Match(Means()).score(marks)["match"].each == [None, 0.0, None]
    unwritten = said("", "rain", ("rain", ""), logprobs=(-1.0, -2.0))
    assert Likelihood(Means()).score([unwritten])["likelihood"].each == [1.0]
