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


def official(answer: str, prediction: str, choices: Sequence[str]) -> bool:
    """``string_match`` of MMAU's evaluation.py, as it stands there."""

    def tokenize(text: str) -> set[str]:
        return set(re.findall(r"\b\w+\b", text.lower()))

    prediction_tokens, answer_tokens = tokenize(prediction), tokenize(answer)
    if not prediction_tokens:
        return False
    incorrect_tokens: set[str] = set()
    for choice in choices:
        choice_tokens = tokenize(choice)
        if choice_tokens != answer_tokens:
            incorrect_tokens.update(choice_tokens - answer_tokens)
    return answer_tokens.issubset(prediction_tokens) and prediction_tokens.isdisjoint(incorrect_tokens)


def test_match_is_the_official_matcher() -> None:
    rng = random.Random(0)
    words = ("a", "dog", "barks", "twice", "rain", "(B)", "the", "C#", "roof,", "It's")
    right = 0
    for _ in range(3000):
        options = tuple({" ".join(rng.choices(words, k=rng.randint(1, 3))) for _ in range(4)})
        wanted, heard = rng.choice(options), " ".join(rng.choices(words, k=rng.randint(0, 5)))
        expected = official(wanted, heard, options)
        assert (Match(Means()).score([said(heard, wanted, options)])["match"].each == [1.0]) is expected
        right += expected
    assert 100 < right < 2900


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
