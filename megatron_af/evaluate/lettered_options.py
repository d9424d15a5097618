"""Options and answers as published files write them: with letters in front, or a letter in the answer's place.

    without_letters(("(A) rain", "(B) hail"))       # ("rain", "hail")
    place_of("B", ("rain", "hail"))                 # 1

A number in the answer's place says nothing, for some count from 0 and some from 1; it is an answer where it is an
option.
"""

import re
import unicodedata
from collections.abc import Sequence

from megatron_af.evaluate.exchange import plain_answer

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTERED = re.compile(r"\s*(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Za-z])[).:])\s*(?=\S)")
_LETTER = re.compile(r"[\s(\[]*([A-Za-z])[\s)\].:]*")


def without_letters(options: Sequence[str]) -> tuple[str, ...]:
    """The options without ``(A)``, ``B.``, ``C)`` in front, where all have one and they are A, B, C and so on."""
    marks = [_LETTERED.match(option) for option in options]
    letters = "".join(_letter(mark) for mark in marks if mark)
    if len(options) < 2 or len(letters) < len(options) or not LETTERS.startswith(letters):
        return tuple(options)
    return tuple(option[mark.end() :].strip() for option, mark in zip(options, marks, strict=True) if mark)


def place_of(answer: str, options: Sequence[str]) -> int | None:
    """Which of the options (without letters) an answer is: its text, its letter, or both; None where it is none.

    Case, spaces, marks around it, Unicode's forms and letters of no width do not count.
    """
    plain, bare = [plain_answer(option) for option in options], [bare_answer(option) for option in options]
    if plain_answer(answer) in plain:
        return plain.index(plain_answer(answer))
    lettered = [option for option in options if _LETTER.fullmatch(option)]
    if (alone := _LETTER.fullmatch(answer)) and not lettered and len(options) > 1:
        place = LETTERS.index(alone[1].upper())
        return place if place < len(options) else None
    if bare.count(bare_answer(answer)) == 1:
        return bare.index(bare_answer(answer))
    mark = _LETTERED.match(answer)
    said = bare_answer(answer[mark.end() :]) if mark else ""
    if mark is None or lettered or bare.count(said) != 1 or LETTERS.index(_letter(mark)) != bare.index(said):
        return None  # the letter of one option beside the words of another among them
    return bare.index(said)


def bare_answer(text: str) -> str:
    """An answer without the marks around it and letters of no width, in one of Unicode's forms; marks alone stay."""
    seen = "".join(one for one in unicodedata.normalize("NFC", text) if unicodedata.category(one) != "Cf")
    return plain_answer(seen.strip().strip(".,;:!?\"'")) or plain_answer(seen)


def _letter(mark: re.Match[str]) -> str:
    return next(filter(None, mark.groups())).upper()
