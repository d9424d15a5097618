"""JSON, or JSON Lines, of conversations about recordings: AudioSkills, LongAudio, LLaMA-Factory, ms-swift.

    {"id": "a", "sound": "a.wav", "conversations": [{"from": "human", "value": "<sound>\\nwhat?"}, {"from": "gpt", …}]}
    {"audios": ["a.wav"], "messages": [{"role": "user", "content": "<audio>what?"}, {"role": "assistant", …}]}
    {"audio_name": "a.mp3", "conversation": [{"from": "human", "value": "what?"}, …]}        # MusicQA
    {"audios": ["a.wav"], "query": "<audio>what?", "response": "rain"}

The marks in the questions say where recordings belong; there must be as many as recordings, or none.
"""

import re
from collections.abc import Iterator, Mapping
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
_TURNS = {"conversations": ("from", "value"), "conversation": ("from", "value"), "messages": ("role", "content")}
"""Key of the turns -> keys of who speaks and of what is said."""
_HUMAN, _ASSISTANT = ("human", "user"), ("gpt", "assistant")
_MARK = re.compile(
    r"<\|audio_bos\|>(?:<\|AUDIO\|>)+<\|audio_eos\|>|<\|(?:AUDIO|audio)\|>|<(?:sound|audio|speech)(?:-(\d+))?>|</(?:sound|audio|speech)>"
)
_INLINE = re.compile(r"<(sound|audio|speech)>([^<\n]*\.\w{2,5})</\1>")
"""Qwen-Audio's way: the file's name in the text."""


def conversations(root: DataRoot, origin: ImportConfig) -> Iterator[Maker]:
    recordings = Recordings(root, origin.audio)

    def make(key: str, value: object) -> Row:
        item = object_of(value, "an object with 'conversations', 'messages' or 'query'")
        names = _names(item)
        pairs = _pairs(item)
        _check_marks([asked for asked, _ in pairs], len(names))
        seconds = seconds_of(item, "duration") or None
        clips = tuple(recordings.clip(name, 0.0, seconds) for name in names)
        questions = tuple(Question(prompt=_without_marks(q), output=a.strip()) for q, a in pairs)
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
        first = value[0] if isinstance(value, list) and value else value
        if key not in AUDIO_KEYS and isinstance(first, str) and len(first) < 1000 and is_audio(first):
            if present and _basename(first) in map(_basename, _listed(item[present[0]])):
                continue  # the same name again, as an id or a path elsewhere
            if key in ("id", *_TURNS, "query", "response"):
                continue
            raise RowError(
                f"key {key!r} holds a recording ({said(first)}) but is not known; expected 'sound' or 'audios'"
            )
    return _listed(item[present[0]]) if present else []


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


def _check_marks(questions: list[str], recordings: int) -> None:
    for text in questions:
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


def _without_marks(text: str) -> str:
    return _MARK.sub("", text).strip()
