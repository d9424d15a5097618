"""Rows of captions and labels."""

import pytest

from megatron_af.prepare.importers.made_rows import is_an_option, label_words, options_prompt


def test_options_and_labels_are_written_as_af1_writes_them() -> None:
    assert options_prompt("which?", ["b", "a"]) == "which?\nOPTIONS:\n - a.\n - b."
    assert options_prompt("is it?", ["no", "yes"]) == "is it?\nOPTIONS:\nyes.\nno."
    assert label_words(" Dog_Bark ", "event classification") == "dog bark"
    assert label_words("anger", "emotion classification") == "angry" and label_words("anger", "") == "anger"


@pytest.mark.parametrize(
    ("answer", "options", "one"),
    [
        ("Rain.", ("rain", "hail"), True),
        ("(B) hail", ("rain", "hail"), True),
        ("hail", ("(A) rain", "(B) hail"), True),
        ("hail, rain", ("rain", "hail"), True),
        ("b", ("rain", "hail"), True),
        ("(B)", ("rain", "hail"), True),
        ("2", ("rain", "hail"), True),
        ("c", ("rain", "hail"), False),
        ("3", ("rain", "hail"), False),
        ("2", ("1", "3", "5"), False),
        ("b", ("a", "c"), False),
        ("1.5", ("2.5", "3.5"), False),
        ("wind", ("rain", "hail"), False),
        ("rain, wind", ("rain", "hail"), False),
    ],
)
def test_an_answer_is_an_option_by_its_words_letter_or_number(answer: str, options: tuple[str, ...], one: bool) -> None:
    assert is_an_option(answer, options) == one
