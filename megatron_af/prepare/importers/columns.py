"""From fields with names to a row: what a table's line, an object of a JSON list and a file's name have in common.

    {columns: {audio: "{ytid}.wav", caption: "caption_1,caption_2"}}
    {columns: {audio: audio_id, prompt: question, output: answer, options: choices, skill: task}}

A record may bring several things at once: an answer to its prompt, a label to choose, captions, and the class that it
counts as (a label is one, too, unless it answers a prompt of its own record). What a blank field would say is not said.
"""

import ast
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from megatron_af.config import ImportConfig
from megatron_af.config.errors import suggestion
from megatron_af.data.rows import Clip, Question, Row, RowError
from megatron_af.data.storage import DataRoot
from megatron_af.foreign import ForeignError, parse_json
from megatron_af.prepare.importers.dictionary import dictionary
from megatron_af.prepare.importers.layout import (
    NOT_SECONDS,
    Maker,
    Noted,
    Recordings,
    checked,
    failing,
    notes_of_labels,
    said,
    seconds_of,
    stated_part,
)
from megatron_af.prepare.importers.made_rows import (
    CAPTIONING,
    CLASSIFICATION,
    NO_CAPTION,
    NO_TEXT,
    classification,
    description,
    is_lettered,
    label_words,
    letter_place,
    of_class,
)

SAYING = ("output", "label", "labels", "caption", "class")
"""Columns that say something of a recording. The first of them that a record has is what its prompts ask for."""
COLUMNS = ("audio", "id", "start", "end", "duration", "prompt", "values", "skill", "options", *SAYING)
_FIELD = r"{([^{}]+)}"
"""A column in a pattern of a name."""
KIND, TEXT = "kind", "text"
"""Fields of a record that stood in a column of another one (``origin.apart``)."""

_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
_AN_OBJECT = re.compile(r"""\{\s*(?:"[^"]{1,80}"|'[^']{1,80}')\s*:""")
"""How JSON's and Python's objects begin."""
_LONGEST_LIST = 10_000
"""Characters of a text that is looked at as a list."""

type Record = Mapping[str, Any]
"""Texts by name; of JSON, lists of texts as well."""
type Records = Sequence[tuple[str, Record | RowError]]
"""Where each stands (``line 7``), and its fields or what is wrong with it."""


def wanted(origin: ImportConfig) -> set[str]:
    """Names of the fields that a configuration asks for."""
    columns = origin.columns
    fields = {name for what, names in columns.items() if what not in ("audio", "id") for name in names.split(",")}
    fields |= {name for what in ("audio", "id") if what in columns for name in _parts(columns[what])}
    return (fields | set(origin.where) | set(origin.apart)) - ({KIND, TEXT} if origin.apart else set())


def check_columns(origin: ImportConfig, known: Sequence[str], where: str) -> None:
    """Raises ``ForeignError`` where the columns cannot make rows.

    Args:
        known: names of all fields.
        where: the file.
    """
    columns = origin.columns
    if odd := [what for what in columns if what not in COLUMNS]:
        raise ForeignError(
            f"origin.columns.{odd[0]}: expected one of {', '.join(COLUMNS)}{suggestion(odd[0], COLUMNS)}"
        )
    if not {"audio"} <= set(columns) or not set(SAYING) & set(columns) or not wanted(origin) <= set(known):
        raise ForeignError(
            f"{where}: origin.columns must name audio and one of {', '.join(SAYING)}; it names "
            f"{columns}{f' and where {dict(origin.where)}' if origin.where else ''}, the table has {list(known)}"
        )
    for what in ("start", "end", "duration"):
        if NOT_SECONDS.fullmatch(columns.get(what, "")):
            raise ForeignError(
                f"origin.columns.{what}: {columns[what]!r} is by its name not in seconds; write a column that is"
            )
    if "output" in columns and not ("prompt" in columns or origin.prompt):
        raise ForeignError(f"{where}: outputs answer a prompt; set origin.columns.prompt or origin.prompt")
    for name, pattern in origin.where.items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ForeignError(f"origin.where.{name}: {pattern!r} is no regular expression ({error})") from None


def rows_of_records(root: DataRoot, origin: ImportConfig, records: Records, first: int = 0) -> Iterator[Maker]:
    """A maker for each record that ``origin.where`` does not leave out.

    Args:
        first: number that ids count from.
    """
    recordings, columns = Recordings(root, origin.audio), origin.columns
    origin = replace(origin, words={**dictionary(root, origin), **origin.words})
    if origin.apart:
        records = list(_apart(records, origin.apart))
    records = list(_each(records, lambda record: [record] if _is_part(record, origin) else []))
    if origin.agreed:
        records = _agreed(records, columns)
    elif not ("start" in columns and {"end", "duration"} & set(columns)):
        yield from _parts_left_out(records, origin)
    labels: dict[str, set[str]] = {"label": set(), "labels": set()}
    if "labels" in columns:
        records = _divided(records, columns["labels"])

    def surveyed(record: Record) -> list[Record]:
        if "label" in columns and (text := _told(_text(record, columns["label"]))):
            labels["label"].add(_said(text, origin))
        if "labels" in columns:
            labels["labels"].update(_labels(record, columns["labels"], origin))
        return [record]

    records = list(_each(records, surveyed))
    options = {what: sorted(some) for what, some in labels.items()}

    def make(key: str, record: Record) -> Row:
        name = _filled(columns["audio"], record)
        start = (_seconds(record, columns["start"]) if "start" in columns else None) or 0.0
        duration = _seconds(record, columns["duration"]) if "duration" in columns else None
        if "end" in columns and (end := _seconds(record, columns["end"])) is not None:
            duration = end - start
            if duration <= 0:
                raise RowError(f"ends at {end} s, before it begins at {start} s")
        if not name.strip():
            raise RowError(f"column {columns['audio']!r}, the recording's name, is empty")
        clip = recordings.clip(name, start, duration)
        row_id = _filled(columns["id"], record) if "id" in columns else ""
        row_id = row_id or str(int(key.split()[-1]) - first)
        return _row(row_id, clip, record, options, origin)

    for where, record in records:
        yield failing(record) if isinstance(record, RowError) else checked(make, where, record, "lines")
    for what, some in options.items():
        cure = f"column {columns.get(what)!r} may be the wrong one, or the table a part of a larger one"
        yield from notes_of_labels(some, sum(not isinstance(record, RowError) for _, record in records), cure)


def _parts_left_out(records: Records, origin: ImportConfig) -> Iterator[Maker]:
    """A note of each record that states a part of its recording in a column that ``origin.columns`` leaves out; raises
    ``ForeignError`` where several of one recording are about other parts of it."""
    read, first = wanted(origin), dict[str, tuple[str, Record]]()
    stated: list[str] = []
    for where, record in records:
        if isinstance(record, RowError):
            continue
        if column := stated_part(record, read):
            stated.append(f"{where}: {column!r} is {said(record[column])}")
        with suppress(RowError):  # told of with its row
            name = _filled(origin.columns["audio"], record)
            there, before = first.setdefault(name, (where, record))
            if before is record:
                continue
            column = column or stated_part(before, read)
            if column and record.get(column) != before.get(column):
                raise ForeignError(
                    f"{there} and {where} are about other parts of {name}: {column!r} is {said(before.get(column))} "
                    f"and {said(record.get(column))}. Name it in origin.columns (start, with end or duration), or "
                    "their texts would be about the whole recording; where they are, take the column out"
                )
    cure = "where their recordings are not cut at it, name it in origin.columns (start, with end or duration)"
    for what in stated:
        yield failing(Noted(f"rows that state a part and are about the whole recording: {cure}", what))


def audio_name(columns: Mapping[str, str], record: Record) -> str:
    return _filled(columns["audio"], record)


def _row(key: str, clip: Clip, record: Record, all_labels: Mapping[str, list[str]], origin: ImportConfig) -> Row:
    """What a record says of its recording: answers, a label, captions, or several of them."""
    columns = origin.columns
    listing = ("audio", "id", "start", "end", "duration", "caption", "options", "labels", "values")
    texts = {what: _text(record, c) for what, c in columns.items() if what not in listing}
    output, label, name = (_told(texts.get(what, "")) for what in ("output", "label", "class"))
    captions = [text for c in columns.get("caption", "").split(",") if c for text in _several(record, c)]
    captions = [text for text in captions if text.lower() not in NO_CAPTION]
    labels = _labels(record, columns["labels"], origin) if "labels" in columns else []
    if not (output or label or labels or name or captions):
        raise RowError(", ".join(f"no {what}: {columns[what]} is empty" for what in SAYING if what in columns))
    asks = next(what for what in SAYING if what in columns)  # whose prompt is meant
    prompts = {asks: texts.get("prompt") or origin.prompt}
    if "values" in columns:
        prompts[asks] = _with_values(prompts[asks], record[columns["values"]])
    if texts.get("prompt") and not {"output": output, "label": label}.get(asks, "answered"):
        raise RowError(f"column {columns['prompt']!r} asks, and {columns[asks]!r}, the answer, is empty")
    if output and not prompts["output"]:
        raise RowError(f"column {columns['output']!r} answers, and {columns['prompt']!r}, the prompt, is empty")
    usual = CLASSIFICATION if label or labels or name else CAPTIONING if captions else ""
    task = origin.task or usual
    skill = texts.get("skill") or task
    options = _options(record, columns.get("options", ""), output)
    asked = Question(prompt=prompts.get("output", ""), output=output, skill=skill, options=tuple(options))
    questions = [asked] if output else []
    if label:
        label = _said(label, origin)
        questions.append(classification(label, all_labels["label"], prompts.get("label", ""), skill))
    if labels:
        together = ", ".join(labels)
        questions.append(classification(together, all_labels["labels"], prompts.get("labels", ""), skill))
    questions += [
        description(text, prompts.get("caption", ""), texts.get("skill") or origin.task or CAPTIONING)
        for text in captions
    ]
    meta = {"labels": labels} if labels else {}
    row = Row(id=key, clips=(clip,), questions=tuple(questions), captions=tuple(captions), task=task, meta=meta)
    answers = asks == "label" and "prompt" in columns  # a label of its own question is no class of sounds
    name = _said(name, origin) if name else "" if answers else label
    return of_class(row, name) if name else row


def _options(record: Record, columns: str, answer: str) -> list[str]:
    """The options of a question, from one column with a list or from a column each."""
    named = {key: list(one.values()) for key, one in record.items() if isinstance(one, dict) and is_lettered(one)}
    found = [_several({**record, **named}, column) for column in columns.split(",") if column]
    while found and not found[-1]:
        found.pop()
    gap = found.index([]) if len(found) > 1 and [] in found else len(found)
    if gap < len(found) and letter_place(answer) >= gap:
        empty = columns.split(",")[gap]
        raise RowError(
            f"column {empty!r}, an option, is empty and others behind it are not, so {answer!r} may be either of two: "
            "write the answer in words"
        )
    return [text for some in found for text in some]


def _with_values(prompt: str, values: object) -> str:
    """A prompt with the list of texts in place of what stands in angle brackets, as MUSIC-AVQA writes its questions."""
    listed = parse_json(values, "a list of values") if isinstance(values, str) else values
    places = re.findall(r"<\w+>", prompt)
    if not isinstance(listed, list) or len(listed) != len(places):
        raise RowError(f"{prompt!r} has {len(places)} places to fill, its values are {said(values)}")
    filling = iter(listed)
    return re.sub(r"<\w+>", lambda _: str(next(filling)), prompt)


def _is_part(record: Record, origin: ImportConfig) -> bool:
    return all(re.fullmatch(pattern, _text(record, name)) for name, pattern in origin.where.items())


def _each(records: Records, look: Callable[[Record], Sequence[Record]]) -> Iterator[tuple[str, Record | RowError]]:
    """What each record becomes; one that cannot be looked at stays as what is wrong with it."""
    for where, record in records:
        if isinstance(record, RowError):
            yield where, record
            continue
        try:
            found = look(record)
        except RowError as error:
            yield where, RowError(f"{where}: {error}")
            continue
        yield from ((where, one) for one in found)


def _apart(records: Records, columns: Mapping[str, str]) -> Iterator[tuple[str, Record | RowError]]:
    """A record for each of these columns of each record; where it has no such column, it says nothing there."""
    return _each(
        records,
        lambda record: [{**record, KIND: kind, TEXT: record.get(column)} for column, kind in columns.items()],
    )


def _agreed(records: Records, columns: Mapping[str, str]) -> list[tuple[str, Record | RowError]]:
    """Of the records with the same audio and prompt the first, where all give the same answer; none, where not."""
    answer = columns.get("output") or columns.get("label") or columns.get("class", "")
    said_of: dict[tuple[str, str], set[str]] = {}

    def key_of(record: Record) -> tuple[str, str]:
        return audio_name(columns, record), _text(record, columns["prompt"]) if "prompt" in columns else ""

    def first(record: Record) -> list[Record]:
        key, new = key_of(record), {_text(record, answer).lower()}
        before = said_of.setdefault(key, set())
        found = [] if before else [record]
        before |= new
        return found

    kept = list(_each(records, first))
    return [(where, r) for where, r in kept if isinstance(r, RowError) or len(said_of[key_of(r)]) == 1]


def _divided(records: Records, column: str) -> list[tuple[str, Record | RowError]]:
    """The records, with lists in place of labels that semicolons or bars divide, where any of a table's are: a comma
    then is a part of a label."""
    texts = [r[column] for _, r in records if not isinstance(r, RowError) and isinstance(r.get(column), str)]
    between = next((mark for mark in ";|" if any(mark in text for text in texts)), None)

    def divided(record: Record) -> list[Record]:
        text = record.get(column)
        return [{**record, column: text.split(between)} if between and isinstance(text, str) else record]

    return list(_each(records, divided))


def _said(label: str, origin: ImportConfig) -> str:
    """A label as it is said, by ``origin.words`` where it is a code.

    Raises:
        RowError: there is a dictionary of codes, without this one.
    """
    if origin.dictionary is not None and label not in origin.words:
        raise RowError(f"label {label!r} is not in {origin.dictionary.path}")
    return label_words(origin.words.get(label, label), origin.task)


def _labels(record: Record, column: str, origin: ImportConfig) -> list[str]:
    """Labels of a record, in the order of the alphabet; a text holds several between commas, or what `_divided`
    found between them."""
    found = _several(record, column)
    texts = found if isinstance(record[column], list) or len(found) > 1 else ",".join(found).split(",")
    return sorted({_said(text, origin) for text in map(_told, texts) if text})


def _told(text: str) -> str:
    """The text, or nothing where it is what programs write in place of one."""
    return "" if (text := text.strip()).lower() in NO_TEXT else text


def _text(record: Record, column: str) -> str:
    """A field as a text; of a list the first item, as MuChoMusic lists its answers, the right one first."""
    return next(iter(_texts(record, column)), "")


def _texts(record: Record, column: str) -> list[str]:
    if column not in record:
        raise RowError(f"{column!r} is missing; there are {', '.join(map(str, record)) or 'none'}")
    value = record[column]
    found = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, bool) or item in (math.inf, -math.inf) or not isinstance(item, str | int | float | None):
            raise RowError(f"{column!r} must be text or a list of texts, got {said(value)}")
        found += [] if item is None or item != item else [str(item).strip()]  # JSON's NaN is no text either
    return [text for text in found if text.strip(_INVISIBLE)]


def _several(record: Record, column: str) -> list[str]:
    """The texts of a field that may hold several, also as one text: JSON's ``["a"]`` or Python's ``['a']``."""
    return [text for text in (one for field in _texts(record, column) for one in _listed(field)) if text]


def _listed(text: str) -> list[str]:
    if _AN_OBJECT.match(text):
        raise RowError(f"holds an object as text ({said(text)}): write what it says into columns of their own")
    if text[:1] + text[-1:] != "[]" or len(text) > _LONGEST_LIST:
        return [text]
    found = None
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        found = json.loads(text) if "\\" in text or text[1:2] == '"' else ast.literal_eval(text)
    if not found or not all(isinstance(item, str) for item in found):
        return [text]
    if text[1:2] == "'" and re.search(r"'\s+'", text):
        raise RowError(f"holds a list without commas ({said(text)}), as numpy prints it: write it as JSON")
    return [item.strip() for item in found]


def _filled(pattern: str, record: Record) -> str:
    """A column's text as it stands, or a pattern with columns in it."""
    if "{" not in pattern:
        value = record.get(pattern, "")
        if isinstance(value, str):
            return value
        if len(texts := _texts(record, pattern)) > 1:
            raise RowError(f"{pattern!r} names {len(texts)}; origin.format=conversations reads rows about several")
        return "".join(texts)
    if missing := [name for name in re.findall(_FIELD, pattern) if name not in record]:
        raise RowError(f"{missing[0]!r} is missing; there are {', '.join(map(str, record)) or 'none'}")
    return re.sub(_FIELD, lambda found: str(record[found[1]]), pattern)


def _parts(pattern: str) -> set[str]:
    return set(re.findall(_FIELD, pattern)) or {pattern}


def _seconds(record: Record, column: str) -> float | None:
    if column not in record:  # an object that says nothing of it, as NeMo's without an offset
        return None
    return seconds_of({column: _text(record, column)}, column)
