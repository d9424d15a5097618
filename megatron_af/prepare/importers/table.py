"""Tables with a column map. CSV is read as RFC 4180 says, TSV is never quoted; no field is lost or shared in silence.

    {format: csv, path: clotho.csv, audio: clotho/development, columns: {audio: file_name, caption: caption_1}}

Commas, semicolons, tabs and bars separate; the line with the column names says which. A line that does not fit its
dialect is a bad row with its number, and reading goes on with the next line: a quotation mark that nobody closes costs
its own line, not the rest of the table.
"""

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from megatron_af.config import ImportConfig
from megatron_af.data.rows import RowError
from megatron_af.data.storage import DataRoot
from megatron_af.foreign import ForeignError, decoded
from megatron_af.prepare.importers.columns import audio_name, check_columns, rows_of_records, wanted
from megatron_af.prepare.importers.layout import Maker, Recordings

DELIMITERS = (",", ";", "\t", "|")
_SEPARATOR = re.compile("sep=.", re.IGNORECASE)
"""What Excel writes before the names of the columns; they show the same."""


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
    if _SEPARATOR.fullmatch(lines[0]):
        lines[0] = ""
    asked = wanted(origin)
    tab = origin.path.endswith((".tsv", ".tab"))
    if origin.names:
        lines = [("\t" if tab else ",").join(origin.names), *lines]
    dialect = _dialect(lines, asked, tab=tab)
    known = dialect.names if dialect else _fields_of_first(lines)
    check_columns(origin, known, where)
    if dialect is None:
        raise ForeignError(f"{where}: no line names the columns {', '.join(sorted(asked))}; there are {known}")
    twice = sorted(name for name in asked if known.count(name) > 1)
    if twice:
        raise ForeignError(f"{where}: two columns are called {twice[0]!r}; rename one of them")
    recordings = Recordings(root, origin.audio)

    def looks_like_a_row(line: str) -> bool:
        try:
            (fields,) = csv.reader([line], delimiter=dialect.delimiter)
        except (csv.Error, ValueError):
            return False
        named = dict(zip(known, fields, strict=False))
        return len(fields) == len(known) and recordings.has(audio_name(origin.columns, named))

    records = [(f"line {number}", record) for number, record in _records(lines, dialect, looks_like_a_row)]
    yield from rows_of_records(root, origin, records, first=dialect.begin + 1)


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
            yield at, _unclosed(at) if len(lines[at - 1]) < csv.field_size_limit() else _too_long(at)


def _too_long(line: int) -> RowError:
    return RowError(f"line {line}: its text has more than {csv.field_size_limit():,} characters")


def _unclosed(line: int) -> RowError:
    return RowError(
        f"line {line}: a quotation mark opens a text and is not closed at its end; close it, or write the ones inside "
        'a text twice ("")'
    )
