"""JSON, or JSON Lines, of conversations about recordings: AudioSkills, LongAudio, LLaMA-Factory, ms-swift.

    {"id": "a", "sound": "a.wav", "conversations": [{"from": "human", "value": "<sound>\\nwhat?"}, {"from": "gpt", …}]}
    {"audios": ["a.wav"], "messages": [{"role": "user", "content": "<audio>what?"}, {"role": "assistant", …}]}
    {"audio_name": "a.mp3", "conversation": [{"from": "human", "value": "what?"}, …]}        # MusicQA
    {"audios": ["a.wav"], "query": "<audio>what?", "response": "rain"}

The marks in the questions say where recordings belong; there must be as many as recordings, or none. A mark inside a
sentence becomes words ("is sound 1 louder than sound 2?"), any other goes. ``start`` and ``end`` (``start_time``,
``audio_start`` ...) are the seconds of the one recording that a row may be about a part of.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import PurePosixPath
from typing import Any

from megatron_af.config import ImportConfig
from megatron_af.data.rows import Question, Row, RowError
from megatron_af.data.storage import DataRoot
from megatron_af.prepare.importers.layout import (
    Maker,
    Recordings,
    checked,
    failing,
    is_audio,
    object_of,
    objects,
    said,
    seconds_of,
    text_of,
)

AUDIO_KEYS = ("sound", "sounds", "audio", "audios", "audio_name")
_NAMES_AUDIO = re.compile(r"(?:audio|sound|speech|wav)s?(?:_?(?:path|file|filename|name|url|id))?", re.IGNORECASE)
_START, _END = ("start", "start_time", "audio_start"), ("end", "end_time", "audio_end")
_TURNS = {"conversations": ("from", "value"), "conversation": ("from", "value"), "messages": ("role", "content")}
"""Key of the turns -> keys of who speaks and of what is said."""
_HUMAN, _ASSISTANT = ("human", "user"), ("gpt", "assistant")
_MARK = re.compile(
    r"<\|audio_bos\|>(?:<\|AUDIO\|>)+<\|audio_eos\|>|<\|(?:AUDIO|audio)\|>|<(?:sound|audio|speech)(?:-(\d+))?>|</(?:sound|audio|speech)>"
)
_LAST_MARK = re.compile(f"(?:{_MARK.pattern})$")
_LIKE_A_MARK = re.compile(r"<[^<>\s]{0,20}(?:audio|sound|speech|wav)[^<>\s]{0,20}>", re.IGNORECASE)
_INLINE = re.compile(r"<(sound|audio|speech)>([^<\n]*\.\w{2,5})</\1>")
"""Qwen-Audio's way: the file's name in the text."""


def conversations(root: DataRoot, origin: ImportConfig) -> Iterator[Maker]:
    recordings = Recordings(root, origin.audio)

    def make(key: str, value: object) -> Row:
        item = object_of(value, "an object with 'conversations', 'messages' or 'query'")
        names = _names(item)
        pairs = _pairs(item)
        _check_marks([asked for asked, _ in pairs], [answer for _, answer in pairs], len(names))
        start, seconds = _part(item, len(names))
        clips = tuple(recordings.clip(name, start, seconds) for name in names)
        questions = tuple(Question(prompt=_without_marks(q, len(names)), output=a.strip()) for q, a in pairs)
        template = "dialogue" if len(questions) > 1 else "single"
        return Row(id=key, clips=clips, questions=questions, task=origin.task, template=template)

    for number, item in objects(root, origin.path):
        if isinstance(item, RowError):
            yield failing(item)
            continue
        key = item.get("id") if isinstance(item, dict) else None
        yield checked(make, str(number - 1 if key is None else key), item, "conversations")


def _names(item: Mapping[str, Any]) -> list[Any]:
    """The recordings of a row, under whichever key it has for them; `RowError` where a key looks like another one."""
    present = [key for key in AUDIO_KEYS if item.get(key)]
    if len(present) > 1:
        raise RowError(f"keys {' and '.join(map(repr, present))} both name recordings: expected one of them")
    for key, value in item.items():
        if key in AUDIO_KEYS or key in ("id", *_TURNS, "query", "response", "history"):
            continue
        first = _first_text(value)
        named = bool(_NAMES_AUDIO.fullmatch(key)) and " " not in first and not present
        if first and len(first) < 1000 and (is_audio(first) or named):
            if present and _basename(first) in map(_basename, _listed(item[present[0]])):
                continue  # the same name again, as a path elsewhere
            raise RowError(
                f"key {key!r} holds a recording ({said(first)}) but is not known; expected 'sound' or 'audios'"
            )
    return _listed(item[present[0]]) if present else []


def _first_text(value: Any) -> str:
    """The text that a value is, or that stands first in it; empty where there is none."""
    while isinstance(value, list | dict) and value:
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return value if isinstance(value, str) else ""


def _part(item: Mapping[str, Any], recordings: int) -> tuple[float, float | None]:
    """Seconds where the sound begins, and how many there are; None: all."""
    start, end = (
        next((seconds for key in keys if (seconds := seconds_of(item, key)) is not None), None)
        for keys in (_START, _END)
    )
    duration = seconds_of(item, "duration") or None
    if recordings != 1 or (start is None and end is None):
        return 0.0, duration
    begin = start or 0.0
    if end is not None and end <= begin:
        raise RowError(f"ends at {end:g} s, before it begins at {begin:g} s")
    return begin, duration if end is None else end - begin


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _basename(name: object) -> str:
    return PurePosixPath(str(name)).name


def _pairs(item: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Questions with their answers."""
    present = [key for key in _TURNS if key in item]
    if not present and "query" in item:
        history = item.get("history") or []
        if not isinstance(history, list) or any(not isinstance(h, list) or len(h) != 2 for h in history):
            raise RowError(f"'history' must be a list of pairs, got {said(history)}")
        before = [{"query": asked, "response": answer} for asked, answer in history]
        return [(text_of(turn, "query"), text_of(turn, "response")) for turn in (*before, item)]
    if not present:
        raise RowError(f"expected 'conversations', 'messages' or 'query', got keys {', '.join(map(str, item))}")
    turns, (who, what) = item[present[0]], _TURNS[present[0]]
    if not isinstance(turns, list) or not turns:
        raise RowError(f"{present[0]!r} must be a list of turns, got {said(turns)}")
    turns = [object_of(turn, f"a turn with {who!r} and {what!r}") for turn in turns]
    speakers = [turn.get(who) for turn in turns]
    if "system" in speakers:
        raise RowError("has a system turn, which no template writes: put it into the first question, or drop it")
    roles = [0 if speaker in _HUMAN else 1 if speaker in _ASSISTANT else 2 for speaker in speakers]
    if roles != [0, 1] * (len(turns) // 2):
        raise RowError(f"{present[0]} must alternate between human and gpt (user and assistant), got {said(speakers)}")
    texts = [text_of(turn, what) for turn in turns]
    return list(zip(texts[::2], texts[1::2], strict=True))


def _check_marks(questions: list[str], answers: list[str], recordings: int) -> None:
    for text in answers:
        if found := _MARK.search(text):
            raise RowError(f"has the mark {found[0]} in an answer, which would be learnt: marks stand in questions")
    for text in questions:
        if found := _LIKE_A_MARK.search(_MARK.sub("", text)):
            raise RowError(
                f"its text has {found[0]}, which looks like the mark of a recording but is none that is known; "
                "expected <sound>, <audio>, <speech>, <sound-1> or <|AUDIO|>"
            )
        if found := _INLINE.search(text):
            raise RowError(f"names its recording {found[2]!r} inside the text: put it under 'sound', leave the mark")
    marks = [mark for text in questions for mark in _MARK.finditer(text) if not mark[0].startswith("</")]
    numbers = {int(mark[1]) for mark in marks if mark[1]}
    plain = sum(not mark[1] for mark in marks)
    count = plain + len(numbers)
    if marks and (count != recordings or (numbers and numbers != set(range(1, len(numbers) + 1)))):
        shown = ", ".join(dict.fromkeys(mark[0] for mark in marks))
        where = "names no recording" if not recordings else f"names {recordings}"
        raise RowError(
            f"its text has marks for {count} recordings ({shown}), the row {where}; recordings stand under "
            f"{', '.join(map(repr, AUDIO_KEYS))}"
        )


def _without_marks(text: str, recordings: int) -> str:
    """The text with words in place of marks inside a sentence, and without those before, behind and between lines."""
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
