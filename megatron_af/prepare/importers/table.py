"""Tables with a column map. CSV is read as RFC 4180 says, TSV is never quoted; no field is lost or shared in silence.

    {format: csv, path: clotho.csv, audio: clotho/development, columns: {audio: file_name, caption: caption_1}}

A line may bring several things at once: an answer to its prompt, a label to choose, captions, and the class that it
counts as (a label is one, too, unless it answers a prompt of its own line). What a blank field would say is not said.

Commas, semicolons, tabs and bars separate; the line with the column names says which. A line that does not fit its
dialect is a bad row with its number, and reading goes on with the next line: a quotation mark that nobody closes costs
its own line, not the rest of the table.
"""

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_af.config import ImportConfig
from megatron_af.config.errors import suggestion
from megatron_af.data.rows import Clip, Question, Row, RowError
from megatron_af.data.storage import DataRoot
from megatron_af.foreign import ForeignError, decoded
from megatron_af.prepare.importers.layout import Maker, Recordings, checked, failing, seconds_of
from megatron_af.prepare.importers.made_rows import (
    CAPTIONING,
    CLASSIFICATION,
    classification,
    description,
    label_words,
    of_class,
)

DELIMITERS = (",", ";", "\t", "|")
SAYING = ("output", "label", "caption", "class")
"""Columns that say something of a recording. The first of them that a table has is what its prompts ask for."""
COLUMNS = ("audio", "id", "start", "end", "duration", "prompt", "skill", *SAYING)


@dataclass(frozen=True)
class _Dialect:
    names: list[str]
    """Of the columns."""
    delimiter: str
    spaced: bool
    """Whether a space may stand between a delimiter and a quotation mark, as in AudioSet's tables."""
    begin: int
    """The first line of the rows, from 0."""

    @property
    def quoted(self) -> bool:
        return self.delimiter != "\t"

    def fields(self, lines: Iterator[str]) -> "Iterator[list[str]]":
        """Records of the lines; `csv.Error` where they break RFC 4180."""
        return csv.reader(lines, delimiter=self.delimiter, strict=True, skipinitialspace=self.spaced)


def table(root: DataRoot, origin: ImportConfig) -> Iterator[Maker]:
    where = f"{root}/{origin.path}"
    lines = decoded(root.read(origin.path), where).split("\n")
    columns = origin.columns
    if odd := [what for what in columns if what not in COLUMNS]:
        raise ForeignError(
            f"origin.columns.{odd[0]}: expected one of {', '.join(COLUMNS)}{suggestion(odd[0], COLUMNS)}"
        )
    wanted = {c for what, c in columns.items() if what != "audio" for c in c.split(",")}
    wanted |= set(re.findall(r"{(\w+)}", columns.get("audio", ""))) or {columns.get("audio", "")}
    dialect = _dialect(lines, wanted, tab=origin.path.endswith((".tsv", ".tab")))
    known = dialect.names if dialect else _fields_of_first(lines)
    if not {"audio"} <= set(columns) or not set(SAYING) & set(columns) or dialect is None:
        raise ForeignError(
            f"{where}: origin.columns must name audio and one of {', '.join(SAYING)}; it names "
            f"{columns}, the table has {known}"
        )
    if "output" in columns and not ("prompt" in columns or origin.prompt):
        raise ForeignError(f"{where}: outputs answer a prompt; set origin.columns.prompt or origin.prompt")
    twice = sorted(name for name in wanted if known.count(name) > 1)
    if twice:
        raise ForeignError(f"{where}: two columns are called {twice[0]!r}; rename one of them")
    recordings = Recordings(root, origin.audio)

    def looks_like_a_row(line: str) -> bool:
        try:
            (fields,) = csv.reader([line], delimiter=dialect.delimiter)
        except (csv.Error, ValueError):
            return False
        return len(fields) == len(known) and recordings.has(_audio_name(columns, dict(zip(known, fields, strict=True))))

    records = list(_records(lines, dialect, looks_like_a_row))
    labels = []
    if "label" in columns:
        stated = (r[columns["label"]] for _, r in records if isinstance(r, dict))
        labels = sorted({label_words(label, origin.task) for label in stated if label.strip()})

    def make(key: str, line: Mapping[str, str]) -> Row:
        name = _audio_name(columns, line)
        start = (_seconds(line, columns["start"]) if "start" in columns else None) or 0.0
        duration = _seconds(line, columns["duration"]) if "duration" in columns else None
        if "end" in columns and (end := _seconds(line, columns["end"])) is not None:
            duration = end - start
            if duration <= 0:
                raise RowError(f"ends at {end} s, before it begins at {start} s")
        if not name.strip():
            raise RowError(f"column {columns['audio']!r}, the recording's name, is empty")
        clip = recordings.clip(name, start, duration)
        row_id = line[columns["id"]] if "id" in columns else str(int(key.removeprefix("line ")) - dialect.begin - 1)
        return _row(row_id, clip, line, labels, origin)

    for number, record in records:
        yield failing(record) if isinstance(record, RowError) else checked(make, f"line {number}", record, "lines")


def _row(key: str, clip: Clip, line: Mapping[str, str], labels: list[str], origin: ImportConfig) -> Row:
    """What a line says of its recording: answers, a label, captions, or several of them."""
    columns = origin.columns
    texts = {what: line[c].strip() for what, c in columns.items() if what not in ("audio", "caption")}
    output, label, name = (texts.get(what, "") for what in ("output", "label", "class"))
    captions = [text for c in columns.get("caption", "").split(",") if c and (text := line[c].strip())]
    if not (output or label or name or captions):
        raise RowError(", ".join(f"no {what}: {columns[what]} is empty" for what in SAYING if what in columns))
    asks = next(what for what in SAYING if what in columns)  # whose prompt is meant
    prompts = {asks: texts.get("prompt") or origin.prompt}
    if texts.get("prompt") and not {"output": output, "label": label}.get(asks, "answered"):
        raise RowError(f"column {columns['prompt']!r} asks, and {columns[asks]!r}, the answer, is empty")
    if output and not prompts["output"]:
        raise RowError(f"column {columns['output']!r} answers, and {columns['prompt']!r}, the prompt, is empty")
    usual = CLASSIFICATION if label or name else CAPTIONING if captions else ""
    task = origin.task or usual
    skill = texts.get("skill") or task
    questions = [Question(prompt=prompts["output"], output=output, skill=skill)] if output else []
    if label:
        label = label_words(label, origin.task)
        questions.append(classification(label, labels, prompts.get("label", ""), skill))
    questions += [
        description(text, prompts.get("caption", ""), texts.get("skill") or origin.task or CAPTIONING)
        for text in captions
    ]
    row = Row(id=key, clips=(clip,), questions=tuple(questions), captions=tuple(captions), task=task)
    answers = asks == "label" and "prompt" in columns  # a label of its own question is no class of sounds
    name = label_words(name, origin.task) if name else "" if answers else label
    return of_class(row, name) if name else row


def _audio_name(columns: Mapping[str, str], line: Mapping[str, str]) -> str:
    pattern = columns["audio"]
    return re.sub(r"{(\w+)}", lambda found: line[found[1]], pattern) if "{" in pattern else line[pattern]


def _seconds(line: Mapping[str, str], column: str) -> float | None:
    return seconds_of({column: line[column].strip()}, column)


def _fields_of_first(lines: list[str]) -> list[str]:
    return next((line.split(",") for line in lines if line.strip()), [])


def _dialect(lines: list[str], wanted: set[str], *, tab: bool) -> _Dialect | None:
    """How the table is written, by the line that names the wanted columns: its first, or a comment before the rows."""
    for number, line in enumerate(lines):
        comment = line.lstrip().startswith("#")
        text = line.lstrip().lstrip("#").strip() if comment else line
        for delimiter in ("\t",) if tab else DELIMITERS:
            try:
                fields = text.split("\t") if delimiter == "\t" else next(csv.reader([text], delimiter=delimiter), [])
            except csv.Error:
                continue
            names = [name.strip() for name in fields]
            if wanted <= set(names):
                return _Dialect(names, delimiter, comment, number + 1)
        if line.strip() and not comment:
            return None
    return None


def _records(
    lines: list[str], dialect: _Dialect, looks_like_a_row: Callable[[str], bool]
) -> Iterator[tuple[int, dict[str, str] | RowError]]:
    """Line number (from 1) and fields by column, or what is wrong with that line."""
    for number, fields in _split(lines, dialect, looks_like_a_row):
        if isinstance(fields, RowError):
            yield number, fields
            continue
        extra = fields[len(dialect.names) :]
        if len(fields) < len(dialect.names) or any(field.strip() for field in extra):
            yield (
                number,
                RowError(
                    f"line {number}: {len(fields)} fields, the header has {len(dialect.names)}"
                    + (f"; a text with {dialect.delimiter!r} in it needs quotation marks" if extra else "")
                ),
            )
        elif any("\0" in field for field in fields):
            yield number, RowError(f"line {number}: holds a zero byte")
        else:
            yield number, dict(zip(dialect.names, fields, strict=False))


def _split(
    lines: list[str], dialect: _Dialect, looks_like_a_row: Callable[[str], bool]
) -> Iterator[tuple[int, list[str] | RowError]]:
    at = dialect.begin
    if not dialect.quoted:
        yield from ((n + 1, lines[n].split("\t")) for n in range(at, len(lines)) if lines[n].strip())
        return
    while at < len(lines):
        start = at
        reader: Any = dialect.fields(lines[n] + "\n" for n in range(start, len(lines)))
        try:
            for fields in reader:
                begin, at = at, start + reader.line_num
                if any(looks_like_a_row(lines[n]) for n in range(begin + 1, at)):
                    at = begin + 1
                    yield at, _unclosed(at)
                    break
                if any(field.strip() for field in fields):
                    yield begin + 1, fields
        except csv.Error:  # it read to the end, or to where the mark is closed in the middle of a text
            at += 1
            yield at, _unclosed(at)


def _unclosed(line: int) -> RowError:
    return RowError(
        f"line {line}: a quotation mark opens a text and is not closed at its end; close it, or write the ones inside "
        'a text twice ("")'
    )
