"""JSON, or JSON Lines, of conversations about recordings: AudioSkills, LongAudio, LLaMA-Factory, ms-swift.

    {"id": "a", "sound": "a.wav", "conversations": [{"from": "human", "value": "<sound>\\nwhat?"}, {"from": "gpt", …}]}
    {"audios": ["a.wav"], "messages": [{"role": "user", "content": "<audio>what?"}, {"role": "assistant", …}]}
    {"audio_name": "a.mp3", "conversation": [{"from": "human", "value": "what?"}, …]}        # MusicQA
    {"audios": ["a.wav"], "query": "<audio>what?", "response": "rain"}
    {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}, {"type": "text", …}]}, …]}

The marks in the questions say where recordings belong (``marks.py``). ``start`` and ``end`` (``start_time``,
``audio_start`` ...) are the seconds of the one recording that a row may be about a part of.
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
_NAMES_AUDIO = re.compile(
    r"(?:.*_)?(?:audio|sound|speech|wave?|voice|recording|clip|media|music|song|track)s?"
    r"(?:_.*|path|file|filename|name|url|id|data|bytes)?|file(?:_?(?:name|path))?s?|paths?",
    re.IGNORECASE,
)
"""Keys that are about a recording where a row has none under those that are known."""
_START, _END = ("start", "start_time", "audio_start"), ("end", "end_time", "audio_end")
_TURNS = {"conversations": ("from", "value"), "conversation": ("from", "value"), "messages": ("role", "content")}
"""Key of the turns -> keys of who speaks and of what is said."""
_HUMAN, _ASSISTANT = ("human", "user"), ("gpt", "assistant")
_SEEN = re.compile(r"(?:image|picture|photo|img|video|frame)s?(?:_?(?:path|file|filename|name|url|id))?", re.IGNORECASE)
"""Keys of what no model here sees."""
_PARTS_WITH_SOUND = ("audio", "audio_url", "input_audio")
"""Types of the parts of a turn in which Qwen2-Audio's and OpenAI's clients say what is heard."""


def conversations(root: DataRoot, origin: ImportConfig) -> Iterator[Maker]:
    recordings = Recordings(root, origin.audio)

    def make(key: str, value: object) -> Row:
        item = _with_names(object_of(value, "an object with 'conversations', 'messages' or 'query'"))
        names = _names(item)
        pairs = _pairs(item)
        start, seconds = _part(item, len(names))
        clips = tuple(recordings.clip(name, start, seconds) for name in names)
        questions = tuple(Question(prompt=q.strip(), output=a.strip()) for q, a in pairs)
        template = "dialogue" if len(questions) > 1 else "single"
        return Row(id=key, clips=clips, questions=questions, task=origin.task, template=template)

    for number, item in objects(root, origin.path, is_one=_has_turns):
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
        if first and _SEEN.fullmatch(key):
            raise RowError(f"key {key!r} holds what is seen ({said(first)}), and these models only hear")
        named = bool(_NAMES_AUDIO.fullmatch(key)) and " " not in first and not present
        if first and (named or (len(first) < 1000 and is_audio(first))):
            if present and _basename(first) in map(_basename, _listed(item[present[0]])):
                continue  # the same name again, as a path elsewhere
            raise RowError(
                f"key {key!r} holds a recording ({said(first)}) but is not known; expected 'sound' or 'audios'"
            )
    return _listed(item[present[0]]) if present else []


def _has_turns(item: Mapping[str, Any]) -> bool:
    return "query" in item or any(key in item for key in _TURNS)


def _with_names(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with texts and marks in place of turns in parts, and the recordings that these name."""
    key = next((key for key in _TURNS if isinstance(item.get(key), list)), None)
    if key is None:
        return item
    what, names, turns = _TURNS[key][1], list[str](), []
    for turn in item[key]:
        if isinstance(turn, dict) and isinstance(turn.get(what), list):
            turn = {**turn, what: "".join(_text_of_part(part, names) for part in turn[what])}
        turns.append(turn)
    if not names:
        return {**item, key: turns}
    if present := [other for other in AUDIO_KEYS if item.get(other)]:
        raise RowError(f"names recordings in its turns and under {present[0]!r}: expected one of them")
    return {**item, key: turns, "audios": names}


def _text_of_part(value: object, names: list[str]) -> str:
    """What a part of a turn says, a mark if it is sound; its name goes to ``names``."""
    part = object_of(value, "a part of a turn with 'type'")
    kind = part.get("type", "text")
    if kind == "text":
        return text_of(part, "text")
    if kind not in _PARTS_WITH_SOUND:
        raise RowError(f"has a part of type {said(kind)}; expected text or {', '.join(_PARTS_WITH_SOUND)}")
    found = next((part[key] for key in (*_PARTS_WITH_SOUND, "path", "url") if part.get(key)), None)
    if isinstance(found, dict):
        found = found.get("url") or found.get("path") or said(found)
    if isinstance(found, str) and (len(found) > 1000 or found.startswith(("data:", "{"))):
        raise RowError("holds a sound inside its text: write it to a file, and name that")
    if isinstance(found, str):
        names.append(found)
    return "<audio>\n"


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
    if recordings > 1 and (start is not None or end is not None):
        raise RowError(f"says where its sound begins or ends, and names {recordings} recordings: whose is it?")
    if recordings > 1 or (start is None and end is None):
        return 0.0, duration if recordings == 1 else None  # of several, each has its own length
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
