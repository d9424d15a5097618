"""AF1's and AF2's JSON manifests: plain, interleaved few-shot lists, dialogues."""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from megatron_af.config import ImportConfig
from megatron_af.data.rows import Clip, Question, Row, RowError
from megatron_af.data.storage import DataRoot
from megatron_af.foreign import ForeignError
from megatron_af.prepare.importers.layout import (
    Maker,
    Noted,
    Recordings,
    checked,
    failing,
    json_file,
    keyed,
    object_of,
    said,
    seconds_of,
    stated_part,
    text_of,
)

_TASK_WORDS = {
    "AQA": "audio question answering",
    "AVQA": "audio vision question answering",
    "InstrClassification": "instrument classification",
    "MIR": "music information retrieval",
}
_KIND = "the rows of Audio Flamingo's manifests"


def audio_flamingo(root: DataRoot, origin: ImportConfig) -> Iterator[Maker]:
    content = _manifest(root, origin.path)
    task = origin.task or task_words(str(content.get("flamingo_task") or ""))
    if "interleaved_data" in content:
        yield from _interleaved(root, origin, content, task)
        return
    recordings = _recordings(root, origin, content)

    def make(key: str, value: object) -> Row:
        item = object_of(value)
        clip = _clip(recordings, item)
        if "dialogue" in item:
            turns = item["dialogue"]
            if not isinstance(turns, list) or not turns:
                raise RowError(f"'dialogue' must be a list of turns, got {said(turns)}")
            pairs = [object_of(turn, "a turn with 'user' and 'assistant'") for turn in turns]
            questions = tuple(Question(prompt=text_of(p, "user"), output=text_of(p, "assistant")) for p in pairs)
            return Row(id=key, clips=(clip,), questions=questions, task="dialog", template="dialogue")
        return Row(id=key, clips=(clip,), questions=(_question(item),), task=item.get("task") or task)

    rows = _part(root, origin.path, content, "data")
    for key, item in rows.items():
        yield checked(make, str(key), item, _KIND)
    yield from _number(origin.path, content, len(rows))


def task_words(name: str) -> str:
    """``Clotho-v2-AudioCaptioning`` -> ``audio captioning``, the words of AF1's prefix."""
    task = name.split("/")[0].split("-")[-1]
    for begin, words in _TASK_WORDS.items():
        if task.startswith(begin):
            return words
    words = re.sub(r"(?=[A-Z])", " ", task).strip().lower()
    return words.replace("audio", "music") if "MusicCaps" in name and words == "audio captioning" else words


def _interleaved(root: DataRoot, origin: ImportConfig, content: Mapping[str, Any], task: str) -> Iterator[Maker]:
    """AF1's few-shot lists: the sample itself stands last, behind its neighbours out of the training split."""
    path = PurePosixPath(origin.path)
    template = "interleaved_random" if path.name.startswith("interleaved_random") else "interleaved"
    split_path = path.with_name(re.sub(r"^interleaved_(knn|random)-", "", path.name))
    train_path = split_path.with_name(re.sub(r"(val|test)\.json$", "train.json", split_path.name))
    split, train = _manifest(root, str(split_path)), _manifest(root, str(train_path))
    own, examples = _recordings(root, origin, split), _recordings(root, origin, train)
    queries, shots = _part(root, str(split_path), split, "data"), _part(root, str(train_path), train, "data")

    def named(items: Mapping[str, Any], index: object, file: PurePosixPath) -> Mapping[str, Any]:
        if str(index) not in items:
            raise RowError(f"{file.name} has no row {index}: the two files do not belong together")
        return object_of(items[str(index)])

    def make(key: str, value: object) -> Row:
        item = object_of(value)
        indices = item.get("fewshot_indices_in_train")
        if not isinstance(indices, list):
            raise RowError(f"'fewshot_indices_in_train' must be a list of rows, got {said(indices)}")
        before = [named(shots, index, train_path) for index in indices]
        query = named(queries, item.get("generation_index_in_split"), split_path)
        clips = [_clip(examples, shot) for shot in before] + [_clip(own, query)]
        pairs = tuple(_question(pair) for pair in (*before, query))
        return Row(id=key, clips=tuple(clips), questions=pairs, task=task, template=template)

    rows = _part(root, origin.path, content, "interleaved_data")
    for key, item in rows.items():
        yield checked(make, str(key), item, _KIND)
    yield from _number(origin.path, content, len(rows))


def _number(path: str, content: Mapping[str, Any], rows: int) -> Iterator[Maker]:
    """A note where the manifest says that it has another number of rows: a part of it may be missing."""
    if (stated := content.get("total_num", rows)) not in (rows, str(rows)):
        what = f"{path}: total_num is {said(stated)}, and there are {rows:,} rows: is it whole?"
        yield failing(Noted("another number of rows than the manifest says", what))


def _manifest(root: DataRoot, path: str) -> Mapping[str, Any]:
    content = json_file(root, path)
    if not isinstance(content, dict):
        kind = "a list: origin.format=conversations or rows reads lists" if isinstance(content, list) else said(content)
        raise ForeignError(f"{root}/{path}: expected an object with 'data' or 'interleaved_data', got {kind}")
    return content


def _part(root: DataRoot, path: str, content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    if key not in content:
        raise ForeignError(f"{root}/{path}: expected keys 'data' or 'interleaved_data', got {sorted(content)}")
    return keyed(content[key], f"{root}/{path}: {key!r}")


def _recordings(root: DataRoot, origin: ImportConfig, content: Mapping[str, Any]) -> Recordings:
    return Recordings(root, str(PurePosixPath(origin.audio) / str(content.get("split_path") or "")))


def _clip(recordings: Recordings, item: Mapping[str, Any]) -> Clip:
    if odd := stated_part(item, ("audio_start", "audio_end")):
        raise RowError(f"a part of the recording is stated in {odd!r}, which is not read: use audio_start and duration")
    start, end = seconds_of(item, "audio_start") or 0.0, seconds_of(item, "audio_end")
    duration = seconds_of(item, "duration") or None
    if duration is None and end is not None:
        if end <= start:
            raise RowError(f"ends at {end:g} s, before it begins at {start:g} s")
        duration = end - start
    return recordings.clip(item.get("name"), start, duration)


def _question(item: Mapping[str, Any]) -> Question:
    return Question(prompt=text_of(item, "prompt"), output=text_of(item, "output"))
