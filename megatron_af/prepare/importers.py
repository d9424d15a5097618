"""Rows out of other people's layouts.

    report = import_dataset(config, "clotho")       # data.datasets.clotho.origin -> data.datasets.clotho.source

AF1's and AF2's JSON manifests (plain, interleaved, dialogue), JSON with ``conversations`` and ``<sound>`` (AudioSkills,
LongAudio), tables with a column map (Clotho, AudioCaps, MusicCaps, ESC-50), a folder per label, WebDataset tars, and
our own rows from elsewhere. A row whose recording is missing or unreadable is left out and counted; lengths that a
layout does not state are read from the recordings' headers.
"""

import csv
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import batched
from pathlib import Path, PurePosixPath
from typing import Any

from dali_pipes.waves import AudioError, recording_seconds
from megatron_af.config import Config, ImportConfig
from megatron_af.data.rows import Clip, Question, Row, RowError, parse_row, to_json
from megatron_af.data.storage import DataRoot, StorageError

CAPTION_PROMPT = "describe the sound in a sentence."
LABEL_PROMPT = "classify this sound."
AUDIO_SUFFIXES = (".flac", ".wav", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm", ".wma", ".aiff", ".aif")
READERS = 16
"""Threads that open recordings for their lengths: what they wait for is the disk or the network."""
EMOTIONS = {
    "anger": "angry",
    "disgust": "disgusted",
    "fear": "fearful",
    "joy": "happy",
    "sadness": "sad",
    "surprise": "surprised",
}
"""Nouns that AF1 turns into adjectives in emotion tasks."""
_TASK_WORDS = {
    "AQA": "audio question answering",
    "AVQA": "audio vision question answering",
    "InstrClassification": "instrument classification",
    "MIR": "music information retrieval",
}


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What came of an import."""

    rows: int
    """Rows written."""
    left_out: dict[str, int]
    """Reason -> rows left out."""
    report: str
    """Where each row that was left out stands with its problem, relative to the data root."""

    @property
    def bad_fraction(self) -> float:
        bad = sum(self.left_out.values())
        return bad / max(1, self.rows + bad)


class _Recordings:
    """Recordings below the root, and how long they are."""

    def __init__(self, root: DataRoot, folder: str) -> None:
        self.root = root
        self.folder = PurePosixPath(folder)

    def clip(self, name: str, start: float = 0.0, duration: float | None = None) -> Clip:
        """The clip of a recording; without a duration, all from ``start`` on.

        Raises:
            RowError, AudioError: the name leaves the root, or the recording cannot be read.
        """
        path = self.folder / name
        if path.is_absolute() or ".." in path.parts:
            raise RowError(f"{name!r} leaves data.root; set origin.audio to the folder that names are relative to")
        if duration is None:
            duration = self.seconds(str(path)) - start
            if duration <= 0:
                raise AudioError(f"{path} ends before {start:.2f} s", "behind the end")
        elif not self.root.exists(str(path)):
            raise AudioError(f"{path} does not exist", "missing")
        return Clip(path=str(path), start=float(start), duration=float(duration))

    def seconds(self, path: str) -> float:
        if not self.root.exists(path):
            raise AudioError(f"{path} does not exist", "missing")
        return recording_seconds(self.root.local(path) or self.root.read(path))


type _Maker = Callable[[], Row]


def import_dataset(config: Config, name: str) -> ImportReport:
    """Writes the rows of a data set's origin to its source.

    Raises:
        ValueError: the configuration lacks something, or the layout is not what ``origin.format`` says.
    """
    dataset = config.data.datasets.get(name)
    if dataset is None or dataset.origin is None or not (dataset.source or dataset.manifest).endswith(".jsonl"):
        raise ValueError(
            f"data.datasets.{name}: importing needs origin, and source (or manifest) that ends with .jsonl; "
            f"got {dataset or 'no such data set'}"
        )
    root = DataRoot(config.data.root)
    target = dataset.source or dataset.manifest
    path = f"{target.removesuffix('.jsonl')}.left_out.jsonl"
    rows, reasons = 0, Counter[str]()
    made = _lines(rows_of(root, dataset.origin))
    with root.writing(target) as good, root.writing(path) as report:
        for number, line in enumerate(made, start=1):
            if isinstance(line, str):
                good.write(line.encode() + b"\n")
                rows += 1
                continue
            reason = line.reason if isinstance(line, AudioError) else "bad row"
            reasons[reason] += 1
            report.write(json.dumps({"row": number, "reason": reason, "problem": str(line)}).encode() + b"\n")
    return ImportReport(rows=rows, left_out=dict(reasons.most_common()), report=path)


def _lines(makers: Iterator[_Maker]) -> Iterator[str | Exception]:
    """Rows as JSON, or what is wrong with them, in order."""

    def line(make: _Maker) -> str | Exception:
        try:
            made = to_json(make())
            parse_row(json.loads(made), "the row made of it")
        except (RowError, AudioError, StorageError) as error:
            return error
        return made

    with ThreadPoolExecutor(READERS) as pool:
        for some in batched(makers, 64 * READERS):
            yield from pool.map(line, some)


def rows_of(root: DataRoot, origin: ImportConfig) -> Iterator[_Maker]:
    """One function per row of the layout; calling it gives the row, or raises what is wrong with it."""
    readers = {
        "audio_flamingo": _audio_flamingo,
        "conversations": _conversations,
        "csv": _table,
        "labels": _label_folders,
        "webdataset": _web_dataset,
        "rows": _own_rows,
    }
    return readers[origin.format](root, origin)


def options_prompt(prompt: str, labels: list[str]) -> str:
    """A classification prompt with its options as AF1 writes them: sorted, each with a full stop; yes before no."""
    if set(labels) == {"yes", "no"}:
        return prompt + "\nOPTIONS:\nyes.\nno."
    return prompt + "\nOPTIONS:\n - " + ".\n - ".join(sorted(labels)) + "."


def task_words(name: str) -> str:
    """``Clotho-v2-AudioCaptioning`` -> ``audio captioning``, the words of AF1's prefix."""
    task = name.split("/")[0].split("-")[-1]
    for begin, words in _TASK_WORDS.items():
        if task.startswith(begin):
            return words
    words = re.sub(r"(?=[A-Z])", " ", task).strip().lower()
    return words.replace("audio", "music") if "MusicCaps" in name and words == "audio captioning" else words


def _audio_flamingo(root: DataRoot, origin: ImportConfig) -> Iterator[_Maker]:
    content = _json(root, origin.path)
    task = origin.task or task_words(content.get("flamingo_task", ""))
    recordings = _Recordings(root, str(PurePosixPath(origin.audio) / (content.get("split_path") or "")))
    if "interleaved_data" in content:
        yield from _interleaved(root, origin, content, task)
        return
    if "data" not in content:
        raise ValueError(f"{root}/{origin.path}: expected keys 'data' or 'interleaved_data', got {sorted(content)}")

    def make(key: str, item: Mapping[str, Any]) -> Row:
        clip = _reference_clip(recordings, item)
        if "dialogue" in item:
            turns = tuple(Question(prompt=turn["user"], output=turn["assistant"]) for turn in item["dialogue"])
            return Row(id=key, clips=(clip,), questions=turns, task="dialog", template="dialogue")
        question = Question(prompt=item["prompt"], output=item["output"])
        return Row(id=key, clips=(clip,), questions=(question,), task=item.get("task") or task)

    for key, item in content["data"].items():
        yield _checked(make, str(key), item)


def _interleaved(root: DataRoot, origin: ImportConfig, content: dict[str, Any], task: str) -> Iterator[_Maker]:
    """AF1's few-shot lists: the sample itself stands last, behind its neighbours out of the training split."""
    path = PurePosixPath(origin.path)
    template = "interleaved_random" if path.name.startswith("interleaved_random") else "interleaved"
    split_path = path.with_name(re.sub(r"^interleaved_(knn|random)-", "", path.name))
    split = _json(root, str(split_path))
    train = _json(root, str(split_path.with_name(re.sub(r"(val|test)\.json$", "train.json", split_path.name))))

    def recordings(part: dict[str, Any]) -> _Recordings:
        return _Recordings(root, str(PurePosixPath(origin.audio) / (part.get("split_path") or "")))

    examples, own = recordings(train), recordings(split)

    def make(key: str, item: Mapping[str, Any]) -> Row:
        shots = [train["data"][str(index)] for index in item["fewshot_indices_in_train"]]
        query = split["data"][str(item["generation_index_in_split"])]
        clips = [_reference_clip(examples, shot) for shot in shots] + [_reference_clip(own, query)]
        pairs = [Question(prompt=x["prompt"], output=x["output"]) for x in (*shots, query)]
        return Row(id=key, clips=tuple(clips), questions=tuple(pairs), task=task, template=template)

    for key, item in content["interleaved_data"].items():
        yield _checked(make, str(key), item)


def _reference_clip(recordings: _Recordings, item: Mapping[str, Any]) -> Clip:
    start = float(item.get("audio_start") or 0.0)
    return recordings.clip(item["name"], start, float(item["duration"]) if item.get("duration") else None)


def _conversations(root: DataRoot, origin: ImportConfig) -> Iterator[_Maker]:
    content = _json(root, origin.path)
    if not isinstance(content, list):
        raise ValueError(f"{root}/{origin.path}: expected a list of objects with 'conversations'")
    recordings = _Recordings(root, origin.audio)

    def make(key: str, item: Mapping[str, Any]) -> Row:
        names = item.get("sound") or []
        seconds = float(item["duration"]) if item.get("duration") else None
        clips = [recordings.clip(n, 0.0, seconds) for n in ([names] if isinstance(names, str) else names)]
        said = item["conversations"]
        if len(said) % 2 or [turn["from"] for turn in said] != ["human", "gpt"] * (len(said) // 2):
            raise RowError(f"row {key}: conversations must alternate between human and gpt")
        questions = tuple(
            Question(prompt=_without_marks(human["value"]), output=gpt["value"].strip())
            for human, gpt in zip(said[::2], said[1::2], strict=True)
        )
        template = "dialogue" if len(questions) > 1 else "single"
        return Row(id=key, clips=tuple(clips), questions=questions, task=origin.task, template=template)

    for number, item in enumerate(content):
        yield _checked(make, str(item.get("id", number)), item)


def _without_marks(text: str) -> str:
    return re.sub(r"<sound(-\d+)?>|</sound>", "", text).strip()


def _table(root: DataRoot, origin: ImportConfig) -> Iterator[_Maker]:
    text = root.read(origin.path).decode("utf-8-sig")
    lines = list(csv.DictReader(io.StringIO(text), delimiter="\t" if origin.path.endswith(".tsv") else ","))
    columns = origin.columns
    known = set(lines[0]) if lines else set()
    wanted = {c for what, c in columns.items() if what != "audio" for c in c.split(",")}
    wanted |= set(re.findall(r"{(\w+)}", columns.get("audio", ""))) or {columns.get("audio", "")}
    if not {"audio"} <= set(columns) or not {"caption", "output", "label"} & set(columns) or wanted - known:
        raise ValueError(
            f"{root}/{origin.path}: origin.columns must name audio and one of caption, output, label; it names "
            f"{columns}, the table has {sorted(known)}"
        )
    if "output" in columns and not ("prompt" in columns or origin.prompt):
        raise ValueError(f"{root}/{origin.path}: outputs answer a prompt; set origin.columns.prompt or origin.prompt")
    labels = sorted({_label(line[columns["label"]], origin.task) for line in lines}) if "label" in columns else []
    recordings = _Recordings(root, origin.audio)

    def make(key: str, line: Mapping[str, str]) -> Row:
        pattern = columns["audio"]
        name = pattern.format(**line) if "{" in pattern else line[pattern]
        start = float(line[columns["start"]]) if "start" in columns else 0.0
        duration = float(line[columns["duration"]]) if "duration" in columns else None
        if "end" in columns:
            duration = float(line[columns["end"]]) - start
        clip = recordings.clip(name, start, duration)
        row_id = line[columns["id"]] if "id" in columns else key
        if labels:
            prompt = line[columns["prompt"]] if "prompt" in columns else origin.prompt
            return _labelled(row_id, clip, _label(line[columns["label"]], origin.task), labels, prompt, origin.task)
        if "caption" in columns:
            captions = [line[c].strip() for c in columns["caption"].split(",")]
            return _captioned(row_id, clip, [c for c in captions if c], origin)
        question = Question(
            prompt=line[columns["prompt"]] if "prompt" in columns else origin.prompt, output=line[columns["output"]]
        )
        return Row(id=row_id, clips=(clip,), questions=(question,), task=origin.task)

    for number, line in enumerate(lines):
        yield _checked(make, str(number), line)


def _label_folders(root: DataRoot, origin: ImportConfig) -> Iterator[_Maker]:
    folder = root.local(origin.path)
    if folder is None or not folder.is_dir():
        raise ValueError(f"{root}/{origin.path}: expected a local folder with one folder per label")
    files = sorted(p for p in folder.glob("*/**/*") if p.suffix.lower() in AUDIO_SUFFIXES)
    names = [str(PurePosixPath(p.relative_to(folder).as_posix())) for p in files]
    labels = sorted({_label(name.split("/")[0], origin.task) for name in names})
    recordings = _Recordings(root, origin.path)

    def make(name: str, _: Mapping[str, Any]) -> Row:
        label = _label(name.split("/")[0], origin.task)
        return _labelled(name, recordings.clip(name), label, labels, origin.prompt, origin.task)

    for name in names:
        yield _checked(make, name, {})


def _web_dataset(root: DataRoot, origin: ImportConfig) -> Iterator[_Maker]:
    pattern = root.local(origin.path)
    if pattern is None:
        raise ValueError(f"{root}: tar files are imported from a local data.root; copy or mount them")
    shards = sorted(Path(pattern.parent).glob(pattern.name))
    if not shards:
        raise ValueError(f"{root}/{origin.path}: no such tar files")
    for shard in shards:
        path = str(PurePosixPath(origin.path).with_name(shard.name))
        samples: dict[str, dict[str, Any]] = {}
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, suffix = PurePosixPath(member.name).name.partition(".")
                sample = samples.setdefault(str(PurePosixPath(member.name).parent / key), {"audio": []})
                if f".{suffix.rpartition('.')[2].lower()}" in AUDIO_SUFFIXES:
                    sample["audio"].append((member.offset_data, member.size))
                elif suffix in ("json", "txt", "cls") and (file := tar.extractfile(member)):
                    sample[suffix] = file.read()

        def make(key: str, sample: Mapping[str, Any], path: str = path) -> Row:
            clips = []
            for offset, length in sample["audio"]:
                seconds = recording_seconds(root.read(path, offset, length))
                clips.append(Clip(path=path, duration=seconds, offset=offset, length=length))
            return _web_row(key, tuple(clips), sample, origin)

        for key, sample in samples.items():
            yield _checked(make, key, sample)


def _own_rows(root: DataRoot, origin: ImportConfig) -> Iterator[_Maker]:
    recordings = _Recordings(root, origin.audio)

    def make(key: str, line: bytes) -> Row:
        content, clips = json.loads(line), []
        for clip in content.get("clips", []):
            found = recordings.clip(clip["path"], clip.get("start", 0.0), clip.get("duration"))
            clips.append(clip | {"path": found.path, "duration": found.duration})
        return parse_row(content | {"clips": clips}, f"line {key}")

    for number, line in enumerate(root.read(origin.path).splitlines(), start=1):
        if line.strip():
            yield _checked(make, str(number), line)


def _web_row(key: str, clips: tuple[Clip, ...], sample: Mapping[str, Any], origin: ImportConfig) -> Row:
    if not clips:
        raise RowError(f"{key}: no audio in the tar")
    content = json.loads(sample["json"]) if "json" in sample else {}
    if {"questions", "captions"} & set(content):  # our own rows, as in prepared shards
        return replace(parse_row(content | {"clips": []}, key), clips=clips)
    texts = content.get("text") or content.get("caption") or sample.get("txt", b"").decode().strip()
    if not texts:
        raise RowError(f"{key}: neither a json with text or caption, nor a txt, beside the audio")
    return _captioned(key, clips[0], [texts] if isinstance(texts, str) else list(texts), origin)


def _captioned(key: str, clip: Clip, captions: list[str], origin: ImportConfig) -> Row:
    prompt = origin.prompt or CAPTION_PROMPT
    questions = tuple(Question(prompt=prompt, output=caption) for caption in captions)
    task = origin.task or "audio captioning"
    return Row(id=key, clips=(clip,), questions=questions, captions=tuple(captions), task=task)


def _labelled(key: str, clip: Clip, label: str, labels: list[str], prompt: str, task: str) -> Row:
    asked = options_prompt(prompt or LABEL_PROMPT, labels)
    question = Question(prompt=asked, output=label, options=tuple(labels))
    return Row(id=key, clips=(clip,), questions=(question,), task=task or "event classification")


def _label(text: str, task: str) -> str:
    label = text.replace("_", " ").strip().lower()
    return EMOTIONS.get(label, label) if "emotion" in task.lower() else label


def _checked(make: Callable[[str, Any], Row], key: str, item: Any) -> _Maker:
    """A row's maker whose plain mistakes come out as `RowError`."""

    def call() -> Row:
        try:
            return make(key, item)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, RowError):
                raise
            raise RowError(f"row {key}: {type(error).__name__}: {error}") from error

    return call


def _json(root: DataRoot, path: str) -> Any:
    try:
        return json.loads(root.read(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{root}/{path} is not JSON: {error}") from error
