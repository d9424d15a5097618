"""Rows of captions and of labels, whatever layout they come from."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from string import ascii_uppercase
from typing import Any

from megatron_af.config import ImportConfig
from megatron_af.data.rows import Clip, Question, Row, RowError
from megatron_af.data.templates import CLASS_PHRASES
from megatron_af.prepare.importers.layout import said

CAPTIONING, CLASSIFICATION = "audio captioning", "event classification"
"""What is asked for, where nobody says it otherwise: the rows' task, and the skill that evaluation reports by."""
CAPTION_PROMPT = "describe the sound in a sentence."
LABEL_PROMPT = "classify this sound."
NO_TEXT = frozenset((
    *("nan", "<na>", "null"),
    *("#n/a", "#ref!", "#value!", "#div/0!", "#name?", "#num!", "#null!"),
))  # fmt: skip
"""What pandas, databases and spreadsheets write where there is no text, in small letters."""
NO_CAPTION = NO_TEXT | {"none"}
"""Of Python, too; but "none" may well be an answer or a label."""
EMOTIONS = {
    "anger": "angry",
    "disgust": "disgusted",
    "fear": "fearful",
    "joy": "happy",
    "sadness": "sad",
    "surprise": "surprised",
}
"""Nouns that AF1 turns into adjectives in emotion tasks."""


_LETTER = re.compile(r"\(?([A-Za-z]|\d{1,3})[).:]*")
_LETTERED = re.compile(r"(?:\((?:[A-Za-z]|\d{1,3})\)\s*|(?:[A-Za-z]|\d{1,3})[).:]\s+)(?=\S)")


def options_prompt(prompt: str, labels: list[str]) -> str:
    """A classification prompt with its options as AF1 writes them: sorted, each with a full stop; yes before no."""
    if set(labels) == {"yes", "no"}:
        return prompt + "\nOPTIONS:\nyes.\nno."
    return prompt + "\nOPTIONS:\n - " + ".\n - ".join(sorted(labels)) + "."


def is_an_option(answer: str, options: Sequence[str]) -> bool:
    """Whether an answer is one of the options, several between commas, or an option's letter or number; letter case,
    marks and a letter before either, as in ``(A) rain``, do not count."""
    if answer in options:
        return True
    offered = {plain for option in options for plain in _plain(option)}
    if offered & _plain(answer) or all(offered & _plain(one) for one in answer.split(",")):
        return True
    if any(_LETTER.fullmatch(option.strip()) for option in options):  # "3" of 1, 5, 7 is no place
        return False
    return -1 < letter_place(answer) < len(options) or answer.strip("(). :") == str(len(options))


def letter_place(answer: str) -> int:
    """Which place, from 0, an answer means that is a letter or a number alone (some count from 1); -1: it is none."""
    if (letter := _LETTER.fullmatch(answer.strip())) is None:
        return -1
    return int(letter[1]) if letter[1].isdecimal() else ascii_uppercase.index(letter[1].upper())


def is_lettered(options: Mapping[str, Any]) -> bool:
    """``{"A": "rain", "B": "hail"}``"""
    return bool(options) and ascii_uppercase.startswith("".join(options).upper())


def answered(row: Row) -> Row:
    """The row, unless an answer is none of its options: then `RowError`. Several labels are one answer."""
    for question in row.questions if "labels" not in row.meta else ():
        if question.options and not is_an_option(question.output, question.options):
            shown = f"{said(question.output)} is none of its options {said(question.options)}"
            raise RowError(f"{row.id}: its answer {shown}")
    return row


def _plain(text: str) -> set[str]:
    bare = _LETTERED.sub("", text.strip())
    return {" ".join(re.sub(r"[\W_]+", " ", one).split()).casefold() for one in (text, bare)}


def captioned(key: str, clip: Clip, captions: list[str], origin: ImportConfig) -> Row:
    """A row that describes its clip, and is asked for each description."""
    task = origin.task or CAPTIONING
    questions = tuple(description(caption, origin.prompt, task) for caption in captions)
    return Row(id=key, clips=(clip,), questions=questions, captions=tuple(captions), task=task)


def description(caption: str, prompt: str, skill: str) -> Question:
    return Question(prompt=prompt or CAPTION_PROMPT, output=caption, skill=skill)


def classification(label: str, labels: list[str], prompt: str, skill: str) -> Question:
    """Which of all labels it is."""
    asked = options_prompt(prompt or LABEL_PROMPT, labels)
    return Question(prompt=asked, output=label, skill=skill, options=tuple(labels))


def of_class(row: Row, name: str) -> Row:
    """The row as one of a class (``meta.class``, what zero-shot classification compares with); where nobody described
    it, its captions say the class, for AF-CLAP and retrieval."""
    said = row.captions or tuple(phrase.format(name) for phrase in CLASS_PHRASES)
    return replace(row, captions=said, meta={**row.meta, "class": name})


def label_words(text: str, task: str) -> str:
    """A label as it is said: small letters, spaces, AF1's adjectives of emotions; in one Unicode form (NFC), for names
    that come from a Mac may have the other."""
    label = unicodedata.normalize("NFC", text).replace("_", " ").strip().lower()
    return EMOTIONS.get(label, label) if "emotion" in task.lower() else label
