"""What is done to answers before they are measured."""

import pytest

from megatron_af.evaluate.cleaning import cleaned


@pytest.mark.parametrize(
    ("text", "how", "wanted"),
    [
        ("\nTwo dogs.\nSo it seems.", ("first_line", "no_full_stop", "number_words"), "2 dogs"),
        ("Twenty-two tones", ("number_words",), "20-2 tones"),
        ("someone weighs a ton", ("number_words",), "someone weighs a ton"),
        ("e.g. rain...", ("no_full_stop",), "e.g. rain"),
        ("  as it is. ", (), "as it is."),
        ("", ("first_line", "no_full_stop", "number_words"), ""),
    ],
)
def test_steps_do_what_they_say(text: str, how: tuple[str, ...], wanted: str) -> None:
    assert cleaned(text, how) == wanted
