"""Rows: the one type of training and evaluation example, and the JSON Lines manifests that hold them.

    rows = Manifest(Path("data/clotho/train.jsonl"))    # any size: only line offsets stay in memory
    rows[7].questions[0].prompt

A line is an object::

    {"id": "clotho-17", "clips": [{"path": "clotho/a.wav", "start": 0.0, "duration": 12.5}],
     "questions": [{"prompt": "what is it?", "output": "rain", "skill": "what", "options": ["rain", "hail"]}],
     "captions": ["rain falls"], "negatives": ["wind blows"], "task": "AQA", "template": "single", "meta": {}}

``clips`` may be empty (text only). ``template`` says how the questions become text. ``single``: every
question is asked on its own about all clips; ``interleaved``: question i belongs to clip i, earlier pairs are
examples for the later ones, similar ones or, as ``interleaved_random``, any; ``dialogue``: the questions are the turns
of one conversation about the clips.
"""

import copy
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, overload

import numpy as np

from megatron_af.foreign import ForeignError, check_utf8, head_of, is_finite, is_json_list, no_file, opened, parse_line

TEMPLATES = ("single", "interleaved", "interleaved_random", "dialogue")
BEHIND_SECONDS, BEHIND_FRACTION = 0.05, 0.05
"""A span may end so much behind its clip (both together): people round, and recordings are cut."""


class RowError(ValueError):
    """A row that cannot be used; the message says where it stands and what is wrong with it."""


class BadLine(RowError):
    """A line of a manifest that is no row that can be used."""

    def __init__(self, path: Path, line: int, why: str) -> None:
        super().__init__(path, line, why)
        self.line, self.why = line, why

    def __str__(self) -> str:
        path, line, why = self.args
        return f"{path}:{line}: {why}"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One piece of audio of a row."""

    path: str
    """File, or shard that holds it, relative to the data root."""
    duration: float
    """Seconds of the piece."""
    start: float = 0.0
    """Seconds from the beginning of the recording."""
    offset: int = 0
    """First byte of the recording inside a shard."""
    length: int = 0
    """Bytes of the recording inside a shard; 0: the path is the recording itself."""
    digest: str = ""
    """SHA-256 of the recording's bytes, known for prepared audio."""

    @property
    def recording(self) -> str:
        """What tells its recording from others: a shard holds many."""
        return self.digest or (f"{self.path}@{self.offset}" if self.length else self.path)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt and the output wanted for it."""

    prompt: str
    output: str
    skill: str = ""
    """What the question asks for; evaluation reports by it."""
    options: tuple[str, ...] = ()
    """All answers a multiple-choice question allows."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A part of a row's only clip, with captions of its own: what a contrastive stage learns local features from."""

    start: float
    """Seconds from the beginning of the clip."""
    end: float
    captions: tuple[str, ...]
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One example: some clips, and questions or captions about them."""

    id: str
    clips: tuple[Clip, ...] = ()
    questions: tuple[Question, ...] = ()
    captions: tuple[str, ...] = ()
    """Sentences that describe the clip (positives of a contrastive stage)."""
    negatives: tuple[str, ...] = ()
    """Sentences close to the captions that do not describe the clip (AF-CLAP's hard negatives)."""
    spans: tuple[Span, ...] = ()
    task: str = ""
    template: str = "single"
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Anything else worth keeping; never read by training."""

    @property
    def own_clips(self) -> tuple[Clip, ...]:
        """What the row itself is about: of an interleaved row the last clip, for the others belong to examples."""
        return self.clips[-1:] if self.template.startswith("interleaved") else self.clips

    def each_question(self) -> "list[Row]":
        """The row once for each question of its own, which then is the last one.

        A dialogue keeps the turns before it. An interleaved row has one question, its last: the pairs before it are
        examples.
        """
        if self.template.startswith("interleaved"):
            return [self]
        if self.template == "dialogue":
            return [replace(self, questions=self.questions[: turn + 1]) for turn in range(len(self.questions))]
        return [replace(self, questions=(question,)) for question in self.questions]


def parse_row(value: object, where: str) -> Row:
    """Turns decoded JSON into a row, or raises `RowError` that begins with ``where``."""
    data = _record(value, Row, where)
    row = Row(
        **data
        | {
            "id": _id(data["id"], where),
            "clips": tuple(_clip(c, f"{where}: clips[{i}]") for i, c in enumerate(_list(data, "clips", where))),
            "questions": tuple(
                _question(q, f"{where}: questions[{i}]") for i, q in enumerate(_list(data, "questions", where))
            ),
            "captions": _strings(data, "captions", where),
            "negatives": _strings(data, "negatives", where),
            "spans": tuple(_span(s, f"{where}: spans[{i}]") for i, s in enumerate(_list(data, "spans", where))),
        }
    )
    if not isinstance(row.meta, dict):
        raise RowError(f"{where}: 'meta' must be an object, got {json.dumps(row.meta)[:80]}")
    _check_spans(row, where)
    if row.template not in TEMPLATES:
        raise RowError(f"{where}: template is one of {', '.join(TEMPLATES)}; got {row.template!r}")
    if row.template.startswith("interleaved") and len(row.clips) != len(row.questions):
        raise RowError(
            f"{where}: an interleaved row has one clip for every question; got {len(row.clips)} clips and "
            f"{len(row.questions)} questions"
        )
    if not (row.questions or row.captions or row.spans):
        raise RowError(f"{where}: a row needs at least one question, caption or span")
    return row


def is_unicode(value: object) -> bool:
    """Whether decoded JSON can be written again: it may hold half of a surrogate pair, which no file and no tokenizer
    takes."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def to_json(row: Row) -> str:
    """The row as one manifest line (without the line end); values equal to their defaults are left out."""

    def compact(item: Row | Clip | Question | Span) -> dict[str, Any]:
        out = {}
        for f in fields(item):
            value = getattr(item, f.name)
            if f.default is MISSING or value != f.default:
                out[f.name] = value
        return out

    record = {name: value for name, value in compact(row).items() if not isinstance(value, (tuple, dict)) or value}
    record |= {"clips": [compact(c) for c in row.clips]}
    if row.questions:
        record["questions"] = [compact(q) for q in row.questions]
    if row.spans:
        record["spans"] = [compact(s) for s in row.spans]
    return json.dumps(record, ensure_ascii=False)


class Manifest(Sequence[Row]):
    """A JSON Lines file as a sequence of rows, parsed one by one when asked for.

    Memory: eight bytes a row. Empty lines do not count.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            problem = f"is {kind}" if (kind := no_file(path)) else "does not exist"
            raise FileNotFoundError(f"manifest {path} {problem}; check data.root and data.datasets.*.manifest")
        if head := head_of(path):
            check_utf8(head, f"manifest {path}")
            if is_json_list(head):
                raise ForeignError(
                    f"manifest {path} is a JSON list, rows stand one a line: import it (origin: {{format: rows, path: "
                    "FILE}), or write it as JSON Lines, for instance by jq -c '.[]'"
                )
        self.path = path
        self._offsets = _line_offsets(path)
        self._counted = (0, 0)  # bytes, and the lines in them: the next bad row is counted from there

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def part(self, begin: int, end: int) -> "Manifest":
        """Rows ``begin`` to ``end - 1`` alone; another process gets their offsets and need not look for them."""
        part = copy.copy(self)
        part._offsets = self._offsets[begin : end + 1]
        return part

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} rows; asked for {index}")
        index %= len(self)
        begin, end = int(self._offsets[index]), int(self._offsets[index + 1])
        with opened(self.path) as file:
            file.seek(begin)
            line = file.read(end - begin)
        try:
            value = parse_line(line)
            if b"\\ud" in line.lower() and not is_unicode(value):
                raise RowError("half of a surrogate pair, which is no text: correct or remove it")
            return parse_row(value, "row")
        except (RowError, ForeignError) as error:  # the number of its line takes a pass over the file
            raise BadLine(self.path, self._line_number(begin), str(error).removeprefix("row: ")) from None

    def each(self) -> Iterator[Row | BadLine]:
        """Every row, or what is wrong with it."""
        for place in range(len(self)):
            try:
                yield self[place]
            except BadLine as error:
                yield error

    def _line_number(self, offset: int) -> int:
        counted, lines = self._counted if self._counted[0] <= offset else (0, 0)
        with opened(self.path) as file:
            file.seek(counted)
            while counted < offset and (block := file.read(min(1 << 24, offset - counted))):
                counted, lines = counted + len(block), lines + block.count(b"\n")
        self._counted = counted, lines
        return lines + 1 + _blank_lines_at(self.path, offset)


def _blank_lines_at(path: Path, offset: int) -> int:
    """Blank lines between ``offset`` (just after a row) and the row that begins there."""
    with opened(path) as file:
        file.seek(offset)
        blank = 0
        while (line := file.readline()) and not line.strip():
            blank += 1
    return blank


def _line_offsets(path: Path, block: int = 1 << 24) -> np.ndarray:
    """Byte offsets between rows, ``rows + 1`` of them; a row's span may begin with blank lines."""
    ends = [np.zeros(1, np.int64)]
    position = 0
    with opened(path) as file:
        while data := file.read(block):
            ends.append(np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1 + position)
            position += len(data)
        offsets = np.unique(np.append(np.concatenate(ends), position))
        short = np.flatnonzero(np.diff(offsets) < 8)  # too short for a row: perhaps blank
        blank = []
        for span in short.tolist():
            file.seek(int(offsets[span]))
            if not file.read(int(offsets[span + 1] - offsets[span])).strip():
                blank.append(span)
    if not blank:
        return offsets
    kept = np.delete(offsets, [span + 1 for span in blank])
    if blank[-1] == len(offsets) - 2 and len(kept) > 1:  # trailing blank lines belong to the last row
        kept[-1] = offsets[-1]
    return kept if len(kept) > 1 else offsets[:1]


def _record(value: object, kind: type, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RowError(f"{where}: expected a JSON object, got {json.dumps(value)[:80]}")
    names = [f.name for f in fields(kind)]
    for key in value:
        if key not in names:
            close = difflib.get_close_matches(key, names, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(names)}"
            raise RowError(f"{where}: unknown key {key!r}; {hint} (free data goes under a row's 'meta')")
    for f in fields(kind):
        if f.name not in value and f.default is MISSING and f.default_factory is MISSING:
            raise RowError(f"{where}: key {f.name!r} is missing")
    for name in ("prompt", "output", "skill", "task", "path", "template", "digest"):
        if name in value and not isinstance(value[name], str):
            raise RowError(f"{where}: {name!r} must be text, got {json.dumps(value[name])[:80]}")
    return value


def _id(value: object, where: str) -> str:
    if isinstance(value, str) or is_finite(value):
        return str(value)
    raise RowError(f"{where}: 'id' must be text or a number, got {json.dumps(value)[:80]}")


def _check_spans(row: Row, where: str) -> None:
    if not row.spans or not row.clips:
        return
    if len(row.clips) > 1:
        raise RowError(f"{where}: 'spans' are parts of a row's only clip, got {len(row.clips)} clips")
    seconds = row.clips[0].duration
    for place, span in enumerate(row.spans):
        if span.end > seconds * (1 + BEHIND_FRACTION) + BEHIND_SECONDS:
            raise RowError(
                f"{where}: spans[{place}] ends at {span.end:g}, behind its clip of {seconds:g} s; expected seconds "
                "from the beginning of the clip"
            )


def _list(data: dict[str, Any], key: str, where: str) -> list[Any]:
    value = data.get(key, [])
    if not isinstance(value, list):
        raise RowError(f"{where}: {key!r} must be a list, got {json.dumps(value)[:80]}")
    return value


def _strings(data: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    values = _list(data, key, where)
    for value in values:
        if not isinstance(value, str) or not value.strip():
            shown = json.dumps(value)[:80]
            raise RowError(f"{where}: {key!r} must hold texts that are not empty, got {shown}")
    return tuple(values)


def _clip(value: object, where: str) -> Clip:
    data = _record(value, Clip, where)
    path = PurePosixPath(data["path"])
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in data["path"]:
        raise RowError(f"{where}: path must be relative and stay inside data.root, got {data['path']!r}")
    for name in ("start", "duration"):
        number = data.get(name, 0.0)
        if not is_finite(number) or number < 0:
            raise RowError(f"{where}: {name!r} must be seconds, zero or more, got {json.dumps(number)[:80]}")
    if data["duration"] == 0:
        raise RowError(f"{where}: 'duration' must be above zero seconds")
    for name in ("offset", "length"):
        if type(data.get(name, 0)) is not int or data.get(name, 0) < 0:
            raise RowError(f"{where}: {name!r} must be bytes, zero or more, got {json.dumps(data[name])[:80]}")
    if data.get("offset") and not data.get("length"):
        raise RowError(
            f"{where}: 'offset' is the first byte of a recording inside a shard, and needs 'length'; seconds from the "
            "beginning of a recording are 'start'"
        )
    return Clip(**data)


def _span(value: object, where: str) -> Span:
    data = _record(value, Span, where)
    for name in ("start", "end"):
        number = data[name]
        if not is_finite(number):
            raise RowError(f"{where}: {name!r} must be seconds, got {json.dumps(number)[:80]}")
    if not 0 <= data["start"] < data["end"]:
        raise RowError(f"{where}: needs 0 <= start < end, got {data['start']} and {data['end']}")
    texts = {name: _strings(data, name, where) for name in ("captions", "negatives")}
    if not texts["captions"]:
        raise RowError(f"{where}: 'captions' is empty: nothing to learn")
    return Span(**data | texts)


def _question(value: object, where: str) -> Question:
    data = _record(value, Question, where)
    if not data["output"].strip():
        raise RowError(f"{where}: 'output' is empty: nothing to learn")
    return Question(**data | {"options": _strings(data, "options", where)})
