"""What is done to an answer before it is measured, as its benchmark's file says.

    cleaned("Two dogs.\\nSo it seems.", ("first_line", "no_full_stop", "number_words"))      # "2 dogs"
"""

import re
from collections.abc import Sequence

NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)


def cleaned(text: str, how: Sequence[str]) -> str:
    for step in how:
        text = _STEPS[step](text)
    return text.strip()


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")


def _no_full_stop(text: str) -> str:
    return text.rstrip().rstrip(".")


def _number_words(text: str) -> str:
    def digits(word: re.Match[str]) -> str:
        return str(NUMBERS.index(word[0].lower())) if word[0].lower() in NUMBERS else word[0]

    return re.sub(r"[A-Za-z]+", digits, text)


_STEPS = {"first_line": _first_line, "no_full_stop": _no_full_stop, "number_words": _number_words}
