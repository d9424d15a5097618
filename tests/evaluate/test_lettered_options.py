"""Options with letters in front of them, and answers that are one."""

import pytest

from megatron_af.evaluate.lettered_options import place_of, without_letters

TWO = ("rain", "hail")


@pytest.mark.parametrize(
    ("given", "bare"),
    [
        (("(A) rain", "(B) hail"), TWO),
        (("A. rain", "B. hail"), TWO),
        (("a) rain", "b)hail"), TWO),
        (("A: rain", "B: hail"), TWO),
        (("[A] rain", "[B] hail"), TWO),
        (("(A) rain", "(C) hail"), ("(A) rain", "(C) hail")),
        (("A. Smith", "rain"), ("A. Smith", "rain")),
        (("A. Smith",), ("A. Smith",)),
        (("A", "B"), ("A", "B")),
        ((), ()),
    ],
)
def test_letters_go_where_all_options_have_theirs(given: tuple[str, ...], bare: tuple[str, ...]) -> None:
    assert without_letters(given) == bare


@pytest.mark.parametrize(
    ("answer", "options", "place"),
    [
        ("hail", TWO, 1),
        (" Hail.", TWO, 1),
        ("hail\u200b", TWO, 1),
        ("cafe\u0301", ("tea", "caf\u00e9"), 1),
        ("B", TWO, 1),
        ("(b)", TWO, 1),
        ("b.", TWO, 1),
        ("(B) hail", TWO, 1),
        ("B. Hail.", TWO, 1),
        ("(A) hail", TWO, None),
        ("C", TWO, None),
        ("1", TWO, None),
        ("A", ("(A) rain (B) hail",), None),
        ("7", ("5", "7"), 1),
        ("D", ("A", "E", "D"), 2),
        ("C", ("A", "E", "D"), None),
        ("wind", TWO, None),
        ("rain.", ("rain!", "rain?"), None),
    ],
)
def test_an_answer_is_an_option_its_letter_or_both(answer: str, options: tuple[str, ...], place: int | None) -> None:
    assert place_of(answer, options) == place
