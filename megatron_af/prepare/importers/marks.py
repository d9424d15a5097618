"""Marks in questions that say where recordings belong: ``<sound>``, ``<audio>``, ``<|AUDIO|>`` and what else they are.

    row = without_marks(row)

There must be as many as recordings, or none: in a conversation over all its turns, else in each question. A mark inside
a sentence becomes words ("is sound 1 louder than sound 2?"), any other goes. What is left in a text would be learnt.
"""

import re
from dataclasses import replace
from itertools import count

from megatron_af.data.rows import Row, RowError

_MARK = re.compile(
    r"<\|audio_bos\|>(?:<\|AUDIO\|>)+<\|audio_eos\|>|<\|(?:AUDIO|audio)\|>|<(?:sound|audio|speech)(?:-(\d+))?>|</(?:sound|audio|speech)>"
)
_LAST_MARK = re.compile(f"(?:{_MARK.pattern})$")
_LIKE_A_MARK = re.compile(
    r"<[^<>\s]{0,20}(?:audio|sound|speech|wav|image|img|picture|video|media)[^<>\s]{0,20}>"
    r"|\[(?:audio|sound|speech|image|video)[ _-]?\d*\]|\{(?:audio|sound|speech|image|video)[ _-]?\d*\}",
    re.IGNORECASE,
)
_INLINE = re.compile(r"<(sound|audio|speech)>([^<\n]*\.\w{2,5})</\1>")
"""Qwen-Audio's way: the file's name in the text."""


def without_marks(row: Row) -> Row:
    """The row without marks in its questions.

    Raises:
        RowError: they do not agree with the row's recordings, stand in an answer, or are no marks that are known.
    """
    if not any("<" in q.prompt + q.output or "[" in q.prompt or "{" in q.prompt for q in row.questions):
        return row
    recordings = 1 if row.template.startswith("interleaved") else len(row.clips)
    prompts = [question.prompt for question in row.questions]
    for question in row.questions:
        _check_texts(question.prompt, question.output)
    for together in [prompts] if row.template == "dialogue" else [[prompt] for prompt in prompts]:
        _check_count(together, recordings)
    return replace(
        row,
        questions=tuple(replace(q, prompt=_bare(q.prompt, recordings)) for q in row.questions),
    )


def _check_texts(prompt: str, answer: str) -> None:
    if found := _MARK.search(answer):
        raise RowError(f"has the mark {found[0]} in an answer, which would be learnt: marks stand in questions")
    if found := _LIKE_A_MARK.search(_MARK.sub("", prompt)):
        raise RowError(
            f"its text has {found[0]}, which looks like the mark of a recording or picture but is none that is known; "
            "expected <sound>, <audio>, <speech>, <sound-1> or <|AUDIO|>"
        )
    if found := _INLINE.search(prompt):
        raise RowError(f"names its recording {found[2]!r} inside the text: put it under 'sound', leave the mark")


def _check_count(prompts: list[str], recordings: int) -> None:
    marks = [mark for text in prompts for mark in _MARK.finditer(text) if not mark[0].startswith("</")]
    numbers = {int(mark[1]) for mark in marks if mark[1]}
    number = sum(not mark[1] for mark in marks) + len(numbers)
    if marks and (number != recordings or (numbers and numbers != set(range(1, len(numbers) + 1)))):
        shown = ", ".join(dict.fromkeys(mark[0] for mark in marks))
        where = f"names {recordings}" if recordings else "names no recording"
        raise RowError(f"its text has marks for {number} recordings ({shown}), the row {where}")


def _bare(text: str, recordings: int) -> str:
    """The text with words in place of marks inside a sentence, and without those before, behind and between lines."""
    if not _MARK.search(text):
        return text
    plain = count(1)

    def words(mark: re.Match[str]) -> str:
        number = mark[1] or str(next(plain))
        return f"sound {number}" if recordings > 1 else "the sound"

    lines = []
    for line in text.split("\n"):
        bare = line.strip()
        while found := _MARK.match(bare) or _LAST_MARK.search(bare):
            bare = bare.removeprefix(found[0]).strip() if found.start() == 0 else bare[: found.start()].strip()
        inside = _MARK.search(bare) is not None
        lines.append(_MARK.sub(words, line) if inside else _MARK.sub("", line))
    return "\n".join(lines).strip()
