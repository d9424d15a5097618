"""What every layout is read with: recordings by name, fields by kind, JSON lists and lines.

recordings = Recordings(root, "clotho/audio")
clip = recordings.clip("rain.wav")
"""

import json
import math
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from dali_pipes.waves import AudioError, recording_seconds
from megatron_af.data.rows import Clip, Row, RowError
from megatron_af.data.storage import DataRoot
from megatron_af.foreign import ForeignError, decoded, is_litter, parse_json
from megatron_af.prepare.importers.marks import without_marks

AUDIO_SUFFIXES = frozenset((
    ".aac", ".ac3", ".adts", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".asf", ".au", ".avi", ".caf", ".dts", ".eac3",
    ".flac", ".flv", ".gsm", ".m4a", ".m4b", ".m4r", ".m4v", ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpeg",
    ".mpg", ".mpga", ".nist", ".oga", ".ogg", ".ogm", ".ogv", ".ogx", ".opus", ".ra", ".rf64", ".rm", ".snd", ".sph",
    ".spx", ".tak", ".ts", ".tta", ".voc", ".w64", ".wav", ".wave", ".weba", ".webm", ".wma", ".wmv", ".wv", ".3gp",
))  # fmt: skip
"""Files with these are recordings; what has another suffix may be one."""
UNFINISHED = frozenset((".aria2", ".crdownload", ".download", ".filepart", ".opdownload", ".part", ".partial", ".tmp"))
"""What browsers and other programs call a file that they have not wholly fetched."""

_A_PART = re.compile(
    r"(?:(?:audio|sound|clip|segment|time|frame|sample)_?|\w+_)?(?:start|begin|end|stop|onset|offset)"
    r"(?:_?(?:time|times|s|sec|secs|seconds?|ms|frames?|samples?))?"
    r"|(?:(?:audio|sound|clip|time)_?)?(?:segments?|timestamps?|intervals?|spans?|ranges?|windows?)"
    r"|from|to|seek|t_?[01]|[tx]_?(?:min|max)",
    re.IGNORECASE,
)
"""Keys that say a part of a recording where their values are times."""
_CUT = re.compile(r"(?:\w+_)?(?:cut|clip|chunk|crop|trim)", re.IGNORECASE)
"""Keys that say one where their values are lists of times; a single number counts pieces."""
NOT_SECONDS = re.compile(
    r"(?:\w+_)?(?:start|begin|onset|end|stop|offset|duration|dur|length|from|to|time)s?_?(?:\w+_)?"
    r"(?:ms|msecs?|millis|milliseconds?|samples?|frames?)",
    re.IGNORECASE,
)
"""Names of columns whose times are in another unit."""
_SECONDS = r"[\d.:]*\d(?:\s*m?s)?"
_TIME = re.compile(rf"(?=.*[1-9]){_SECONDS}(?:\s*(?:-|,|to)\s*{_SECONDS})?")

type Maker = Callable[[], Row]


class PassedOver(Exception):
    """A file that is no recording of the data set; the message says why."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name


class Noted(Exception):
    """What somebody should know of a layout whose rows are imported all the same.

    Args:
        kind: how it is told together with others.
    """

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


class Object(dict[str, Any]):
    """An object of JSON, which remembers a key that it had twice: the last counts, and what the others said is lost."""

    def __init__(self, pairs: Iterable[tuple[str, Any]]) -> None:
        pairs = list(pairs)
        super().__init__(pairs)
        names = [name for name, _ in pairs] if len(self) < len(pairs) else []
        self.twice = next((name for name in names if names.count(name) > 1), None)


class Recordings:
    """Recordings below a folder of the root, and how long they are."""

    def __init__(self, root: DataRoot, folder: str) -> None:
        self.root = root
        self.folder = PurePosixPath(folder)
        self._names = lru_cache(maxsize=64)(self._names_in)

    def clip(self, name: object, start: float = 0.0, duration: float | None = None) -> Clip:
        """The clip of a recording; without a duration, all from ``start`` on.

        Raises:
            RowError, AudioError: the name leaves the root, or the recording cannot be read.
        """
        path = self.path(name)
        if not self.root.exists(path):
            raise AudioError(f"{path} does not exist{self.hint(path)}", "missing")
        if duration is None:
            try:
                duration = recording_seconds(self.root.local(path) or self.root.read(path)) - start
            except AudioError as error:
                raise AudioError(f"{path} {error}", error.reason) from error
            if duration <= 0:
                raise AudioError(f"{path} ends before {start:.2f} s", "behind the end")
        if duration <= 0:
            raise RowError(f"its part of {path} lasts {duration:g} s; expected more than none")
        return Clip(path=path, start=float(start), duration=float(duration))

    def path(self, name: object) -> str:
        """The path below the root that a name means.

        Raises:
            RowError: it means none.
        """
        if not isinstance(name, str) or not name.strip():
            raise RowError(f"names no recording: expected a file's name, got {said(name)}")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise RowError(f"{name!r} is a name that is not UTF-8: rename the file (convmv does many)") from None
        if "://" in name and not name.startswith("file://"):
            raise RowError(f"{name!r} is an address: fetch the recordings first, import reads files")
        path = self.folder / name.removeprefix("file://")
        if path.is_absolute():
            path = self._below_root(path)
        if ".." in path.parts:
            raise RowError(f"{name!r} leaves data.root; set origin.audio to the folder that names are relative to")
        return str(path)

    def _below_root(self, path: PurePosixPath) -> PurePosixPath:
        for root in (Path(str(self.root)).absolute(), Path(str(self.root)).resolve()):
            if path.is_relative_to(root):
                return path.relative_to(root)
        raise RowError(
            f"{str(path)!r} is no place below data.root ({self.root}): cut the beginning of such names, so that they "
            "are relative to origin.audio"
        )

    def has(self, name: str) -> bool:
        """Whether there is a recording of that name."""
        try:
            return bool(name.strip()) and self.root.exists(self.path(name))
        except RowError:
            return False

    def hint(self, path: str) -> str:
        """Why there may be no such file, or what it may be called; empty where nothing is near."""
        folder, _, name = path.rpartition("/")
        if (local := self.root.local(path)) is not None and os.path.islink(local):  # noqa: PTH114  # of any name
            return ": it is a link that leads nowhere"
        if "\\" in name:
            return ": folders are separated by / and not by a backslash"
        names = self._names(folder)
        name = unquote(name.strip())
        near = names.get(name.casefold()) or names.get(PurePosixPath(name).stem.casefold())
        return f"; {near!r} is there" if near else ""

    def _names_in(self, folder: str) -> dict[str, str]:
        try:
            names = self.root.names(folder)
        except (OSError, ValueError):
            return {}
        return {PurePosixPath(n).stem.casefold(): n for n in names} | {n.strip().casefold(): n for n in names}


def checked(make: Callable[[str, Any], Row], key: str, item: Any, kind: str) -> Maker:
    """A row's maker whose plain mistakes come out as `RowError` that begins with the row's key."""

    def call() -> Row:
        try:
            return without_marks(make(key, item))
        except (RowError, ForeignError) as error:
            raise RowError(f"{key}: {str(error).removeprefix(f'{key}: ')}") from error
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise RowError(f"{key}: is not built as {kind} are ({type(error).__name__})") from error

    return call


def failing(error: Exception) -> Maker:
    """The maker of a row that is known to be none."""

    def call() -> Row:
        raise error

    return call


def notes_of_labels(labels: Collection[str], rows: int, cure: str) -> Iterator[Maker]:
    """Notes where all rows are asked for a label that is the only one, and where some labels may be the same."""
    if len(labels) == 1 and rows > 1:
        what = f"all {rows:,} are {min(labels)!r}: {cure}"
        yield failing(Noted("a question with one option teaches nothing", what))
    alike: dict[str | float, list[str]] = {}
    for label in sorted(labels):
        alike.setdefault(_bare(label), []).append(label)
    for same in alike.values():
        if len(same) > 1:
            kind = "labels that look alike, and are offered as options beside each other: write them alike"
            yield failing(Noted(kind, ", ".join(map(repr, same))))


def _bare(label: str) -> str | float:
    """A label as its number, or without the spaces and marks that writers differ in; those between digits count."""
    with suppress(ValueError):
        return float(label)
    return re.sub(r"(?<!\d)[\s_.'’-]+|[\s_.'’-]+(?!\d)", "", unicodedata.normalize("NFKC", label).casefold())


def object_of(value: object, what: str = "an object") -> Mapping[str, Any]:
    """The value, if it is a JSON object; else `RowError`."""
    if not isinstance(value, dict):
        raise RowError(f"expected {what}, got {said(value)}")
    if isinstance(value, Object) and value.twice is not None:
        raise RowError(f"has the key {value.twice!r} twice, and only the last would count")
    return value


def keyed(value: object, where: str) -> Mapping[str, Any]:
    """The value, if it is a JSON object that holds rows by their keys; else `ForeignError`."""
    if not isinstance(value, dict):
        raise ForeignError(f"{where} must be an object, key -> row, got {said(value)}")
    if isinstance(value, Object) and value.twice is not None:
        raise ForeignError(f"{where} has the key {value.twice!r} twice, and only the last would count: rename one")
    return value


def text_of(item: Mapping[str, Any], key: str) -> str:
    """The text under a key; else `RowError`."""
    if key not in item:
        raise RowError(f"key {key!r} is missing; there are {', '.join(map(str, item)) or 'none'}")
    value = item[key]
    if not isinstance(value, str):
        raise RowError(f"key {key!r} must be text, got {said(value)}")
    return value


def seconds_of(item: Mapping[str, Any], key: str) -> float | None:
    """Seconds under a key, as a number or as text; None where there are none; else `RowError`."""
    value = item.get(key)
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number < 0 or isinstance(value, bool):
        raise RowError(f"{key!r} must be seconds, zero or more, got {said(value)}")
    return number


def stated_part(item: Mapping[str, Any], read: Collection[str]) -> str:
    """The first key, of those that are not read, under which a part of a recording is stated; else nothing."""
    return next(
        (
            key
            for key, value in item.items()
            if key not in read
            and (_A_PART.fullmatch(key) or (isinstance(value, list) and _CUT.fullmatch(key)))
            and _has_times(value)
        ),
        "",
    )


def _has_times(value: Any) -> bool:
    """Whether there are seconds, or others of time's units, other than zero in a value."""
    if isinstance(value, list | dict):
        return any(map(_has_times, value.values() if isinstance(value, dict) else value))
    if isinstance(value, str):
        return bool(_TIME.fullmatch(value.strip()))
    return isinstance(value, int | float) and not isinstance(value, bool) and value != 0


def said(value: object) -> str:
    """A value as a message shows it."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."


def json_file(root: DataRoot, path: str) -> Any:
    """What a JSON file holds.

    Raises:
        ForeignError, StorageError: it is none, or cannot be read.
    """
    return parse_json(root.read(path), f"{root}/{path}", Object)


def objects(
    root: DataRoot, path: str, is_one: Callable[[Mapping[str, Any]], bool] = lambda _: True
) -> Iterator[tuple[int, Any]]:
    """Items of a JSON list, or lines of JSON Lines, with the number of each; a line that is no JSON as `RowError`.

    Args:
        is_one: whether an object that is alone is an item. If it is none, the list in it is read (``{"data": [...]}``),
            or what it has under its keys, which are the ids of what has no ``id``.

    Raises:
        ForeignError, StorageError: the file is neither, or cannot be read.
    """
    text = decoded(root.read(path), f"{root}/{path}")
    try:
        whole = parse_json(text, f"{root}/{path}", Object)
    except ForeignError as error:
        lines, begun = _lines(text), list[tuple[int, Any]]()
        while not begun or not isinstance(begun[-1][1], dict):
            if re.match(r"\s*\[", text) or (line := next(lines, None)) is None:
                raise error from None
            begun.append(line)
        yield from chain(begun, lines)
        return
    yield from enumerate(whole if isinstance(whole, list) else _inside(whole, f"{root}/{path}", is_one), start=1)


def _inside(whole: Any, where: str, is_one: Callable[[Mapping[str, Any]], bool]) -> list[Any]:
    if not isinstance(whole, dict) or is_one(whole):
        return [whole]
    inside = [value for value in whole.values() if isinstance(value, dict | list)]
    if len(inside) == 1 and isinstance(inside[0], list) and any(isinstance(item, dict) for item in inside[0]):
        return inside[0]
    if inside and all(isinstance(value, dict) for value in whole.values()):
        for key, value in keyed(whole, where).items():
            value.setdefault("id", key)
        return list(whole.values())
    return [whole]


def _lines(text: str) -> Iterator[tuple[int, Any]]:
    """The lines that are not blank, decoded one by one: millions at once take several times what the file does."""
    begin = number = 0
    while begin < len(text):
        end = text.find("\n", begin)
        line, number = text[begin : end if end >= 0 else None], number + 1
        begin = end + 1 if end >= 0 else len(text)
        if line.strip():
            yield number, _line(line, number)


def _line(text: str, number: int) -> Any:
    try:
        return parse_json(text, f"line {number}", Object)
    except ForeignError as error:
        return RowError(str(error))


def is_audio(name: str) -> bool:
    return not is_litter(name) and PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES
