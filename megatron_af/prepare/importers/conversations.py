"""JSON, or JSON Lines, of conversations about recordings: AudioSkills, LongAudio, LLaMA-Factory, ms-swift.

    {"id": "a", "sound": "a.wav", "conversations": [{"from": "human", "value": "<sound>\\nwhat?"}, {"from": "gpt", …}]}
    {"audios": ["a.wav"], "messages": [{"role": "user", "content": "<audio>what?"}, {"role": "assistant", …}]}
    {"audio_name": "a.mp3", "conversation": [{"from": "human", "value": "what?"}, …]}        # MusicQA
    {"audios": ["a.wav"], "query": "<audio>what?", "response": "rain"}
    {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}, {"type": "text", …}]}, …]}

The marks in the questions say where recordings belong (``marks.py``). ``start`` and ``end`` (``start_time``,
``begin``, ``onset`` ...) are the seconds of the one recording that a row may be about a part of; ``offset`` begins it
beside ``duration``, as NeMo writes it, and ends it beside ``onset``.
"""

import re
from collections.abc import Collection, Iterator, Mapping
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
    stated_part,
    text_of,
)

AUDIO_KEYS = ("sound", "sounds", "audio", "audios", "audio_name")
_NAMES_AUDIO = re.compile(
    r"(?:.*_)?(?:audio|sound|speech|wave?|voice|recording|clip|media|music|song|track)s?"
    r"(?:_.*|path|file|filename|name|url|id|data|bytes)?|file(?:_?(?:name|path))?s?|paths?",
    re.IGNORECASE,
)
"""Keys that are about a recording where a row has none under those that are known."""
_START = ("start", "start_time", "audio_start", "begin", "begin_time", "onset")
_END = ("end", "end_time", "audio_end")
_OFFSET = "offset"
_LEARNT = ("loss", "loss_mask", "loss_scale", "loss_weight", "train", "weight")
"""Keys by which others say how much of an answer is learnt; here every one is, wholly."""
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
        _check_turns(item, names)
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
    names = _listed(item[present[0]]) if present else []
    _check_keys(item, (*AUDIO_KEYS, "id", *_TURNS, "query", "response", "history"), names)
    return names


def _check_keys(item: Mapping[str, Any], read: Collection[str], names: list[Any], where: str = "") -> None:
    """`RowError` where a key that is not read is about a recording of its own, or what is seen.

    Args:
        names: the recordings of the row.
        where: what the keys belong to, as the message says it.
    """
    for key, value in item.items():
        if key in read:
            continue
        first = _first_text(value)
        if first and _SEEN.fullmatch(key):
            raise RowError(f"{where}key {key!r} holds what is seen ({said(first)}), and these models only hear")
        named = bool(_NAMES_AUDIO.fullmatch(key)) and " " not in first and not names
        if first and (named or (len(first) < 1000 and is_audio(first))):
            if _basename(first) in map(_basename, names[:1]):
                continue  # the same name again, as a path elsewhere
            raise RowError(
                f"{where}key {key!r} holds a recording ({said(first)}) but is not known; expected 'sound' or 'audios'"
                + (" of the row" if where else "")
            )


def _check_turns(item: Mapping[str, Any], names: list[Any]) -> None:
    """`RowError` where the row or one of its turns says what no template writes, or what nothing here reads."""
    if item.get("system"):
        raise RowError("has a key 'system', which no template writes: put it into the first question, or drop it")
    _check_learnt(item)
    key = next((key for key in _TURNS if isinstance(item.get(key), list)), None)
    for turn in item[key] if key else ():
        if isinstance(turn, dict):
            who, what = _TURNS[key or ""]
            _check_keys(turn, (who, what), names, "a turn's ")
            if odd := stated_part(turn, (who, what)):
                raise RowError(f"a part of the recording is stated in {odd!r} of a turn: use start and end of the row")
            if turn.get(who) not in _HUMAN:  # no question is learnt, whatever it says
                _check_learnt(turn)


def _check_learnt(item: Mapping[str, Any]) -> None:
    for key in _LEARNT:
        if any(value is not None and value not in (True, "") for value in _listed(item.get(key))):
            raise RowError(
                f"key {key!r} is {said(item[key])}, and every answer is learnt wholly: drop the row or the key"
            )


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
    if odd := stated_part(part, ("type",)):
        raise RowError(f"a part of the recording is stated in {odd!r} of a turn: use start and end of the row")
    if kind == "text":
        _check_keys(part, ("type", "text"), [], "a part of text's ")
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
    if odd := stated_part(item, (*_START, *_END, _OFFSET)):
        raise RowError(f"a part of the recording is stated in {odd!r}, which is not read: use start and end")
    start, end = _one_of(item, _START), _one_of(item, _END)
    duration = seconds_of(item, "duration") or None
    if (offset := seconds_of(item, _OFFSET)) is not None:
        begins = start is None and end is None and (duration is not None or not offset)
        ends = end is None and seconds_of(item, "onset") is not None
        if not begins and not ends:
            raise RowError(
                "'offset' begins a part of a recording beside 'duration', and ends it beside 'onset': use start and end"
            )
        start, end = (offset, end) if begins else (start, offset)
    if recordings > 1 and (start is not None or end is not None):
        raise RowError(f"says where its sound begins or ends, and names {recordings} recordings: whose is it?")
    if recordings > 1 or (start is None and end is None):
        return 0.0, duration if recordings == 1 else None  # of several, each has its own length
    begin = start or 0.0
    if end is not None and end <= begin:
        raise RowError(f"ends at {end:g} s, before it begins at {begin:g} s")
    return begin, duration if end is None else end - begin


def _one_of(item: Mapping[str, Any], keys: Collection[str]) -> float | None:
    """Seconds under whichever of the keys there is."""
    found = {key: seconds for key in keys if (seconds := seconds_of(item, key)) is not None}
    if len(set(found.values())) > 1:
        raise RowError(f"keys {' and '.join(map(repr, found))} say different seconds: expected one of them")
    return next(iter(found.values()), None)


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
