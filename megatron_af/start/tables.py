"""Tables that say what recordings are: which column names these, which says what, and what of the rest can be meant.

    found = table(Path("digits"), Path("data/digits"), names)    # None: no table there names the recordings

Where the recordings of a table lie in several folders, or it names none of them, it is written anew with their paths.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dali_pipes.waves import AudioError, recording_seconds
from megatron_af.config import DictionaryConfig, ImportConfig
from megatron_af.files import write
from megatron_af.foreign import ForeignError, decoded, read_bytes
from megatron_af.prepare.importers.layout import NOT_SECONDS, is_audio

LINK, TABLE = "recordings", "table.tsv"
LOOKED_AT = 200
"""Lines of a table, and names of recordings, that decide what it is."""
LISTENED_TO = 20
"""Recordings whose lengths say whether a table's times are times in them."""
TESTS = frozenset(["test", "testing", "eval", "evaluation"])
DEVELOPMENT = frozenset(["val", "valid", "validation", "dev"])
_SECONDS = r"(?:_?(?:time|s|secs?|seconds?|in_s|in_seconds))?"
WORDS = {
    "prompt": r"question|prompt|query|instruction",
    "output": r"answer|output|response",
    "label": r"label|class|category|target|emotion|genre|species|word|digit|command|tag",
    "labels": r"labels|tags|positive_labels",
    "caption": r"caption|text|transcript|transcription|description|sentence|said",
    "skill": r"skill|question_?type",
    "start": rf"(?:start|begin|onset|from){_SECONDS}",
    "end": rf"(?:end|stop|offset|to){_SECONDS}",
    "duration": rf"(?:duration|dur|length){_SECONDS}",
}
"""What -> names of columns that mean it, by themselves or with a number behind them."""
_OPTIONS = r"(?:options?|choices?|candidates?|alternatives?)(?:[_ ]?[a-h1-8])?"
_BEGINS = re.compile("start|begin|onset", re.IGNORECASE)
TIMES = ("start", "end", "duration")
_CODE = re.compile(r"/[mtg]/\w+(?:\s*,\s*/[mtg]/\w+)*")
"""Labels as AudioSet writes them."""
_CODES, _MEANING = "mid", "display_name"
"""Columns of its ``class_labels_indices.csv``."""
MOST_LABELS = 0.3
"""Different texts among those of a column (or beginnings of names) that are labels, at the most."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """How a folder is imported."""

    origins: dict[str, ImportConfig]
    """``all``; or ``train``, ``test`` and perhaps ``development``, where the folder is divided already."""
    told: list[str]
    """What it was taken for, in sentences."""


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A table that names recordings."""

    columns: dict[str, str]
    """What -> column."""
    place: str
    """Folder that recordings are named from."""
    spread: dict[str, str]
    """Name -> path, where no one folder has them."""
    codes: bool = False
    """Whether its labels are codes, which a list of their meanings says."""
    told: str = ""


def table(folder: Path, root: Path, names: Sequence[str]) -> Found | None:
    """The tables whose first line names columns, one of them of recordings.

    Raises:
        ForeignError: one cannot be read.
    """
    tables = [name for name in names if is_table(name)]
    found = {name: read for name in tables if (read := _columns(folder, name, names)) is not None}
    if not found:
        return None
    by_split: dict[str, str] = {split_of(name): name for name in reversed(found)}
    splits, said_of_splits = measured({s: by_split[s] for s in ("train", "development", "test") if s in by_split})
    first = min(found, key=lambda name: (name.count("/"), name))
    chosen = splits if {"train", "test"} <= set(splits) else {"all": first}
    origins, told = {}, []
    for split, name in chosen.items():
        read = found[name]
        if read.spread:
            path = TABLE if split == "all" else f"{split}_{TABLE}"
            _write_paths(folder / name, root / path, read)
            place = LINK
        else:
            path, place = f"{LINK}/{name}", below(read.place)
        words = _dictionary(folder, tables, name) if read.codes else None
        origins[split] = ImportConfig(format="csv", path=path, audio=place, columns=read.columns, dictionary=words)
        said = ", ".join(f"{what} in '{column}'" for what, column in read.columns.items())
        where = f"; recordings below {read.place}" if read.place else ""
        if len({Path(at).parent for at in read.spread.values()}) > 1:
            where += "; recordings in several folders"
        told.append(f"a table, {name}: {said}{where}{read.told}")
    told += said_of_splits if "all" not in chosen else []
    if others := sorted(set(found) - set(chosen.values())):
        told.append(f"not read: {', '.join(others)}")
    return Found(origins=origins, told=told)


def measured(splits: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Where a set is divided into what trains and what settings are chosen by alone, that is measured; and a sentence
    about it."""
    if set(splits) != {"train", "development"}:
        return splits, []
    name = splits["development"]
    return {"train": splits["train"], "test": name}, [f"{name} is measured at the end, for none is called test"]


def is_table(name: str) -> bool:
    return Path(name).suffix.lower() in (".csv", ".tsv", ".tab")


def records(path: Path, most: int | None = LOOKED_AT + 1) -> Iterator[list[str]]:
    """The first lines of a table, divided as its first one is; that may be a comment, or follow Excel's ``sep=;``.

    Raises:
        ForeignError: it is no text.
    """
    lines = [line for line in read_words(path).split("\n") if line.strip()]
    if lines and re.fullmatch("sep=.", lines[0], re.IGNORECASE):
        del lines[0]
    comments = 0
    while comments < len(lines) and lines[comments].lstrip().startswith("#"):
        comments += 1
    if comments:
        lines[:comments] = [lines[comments - 1].lstrip("# ")]
    between = "\t" if path.suffix.lower() != ".csv" else max(",;\t|", key=lines[0].count) if lines else ","
    reader = csv.reader(
        (f"{line}\n" for line in lines[:most]),  # a text in quotation marks may go on in the next line
        delimiter=between,
        quoting=csv.QUOTE_NONE if between == "\t" else csv.QUOTE_MINIMAL,
        skipinitialspace=bool(comments),
    )
    while True:
        try:
            yield next(reader)
        except csv.Error:  # import names the line
            continue
        except StopIteration:
            return


def _columns(folder: Path, name: str, names: Sequence[str]) -> _Read | None:
    rows = list(records(folder / name))
    written = [column.strip() for column in rows[0]] if rows else []
    # Spreadsheets write empty columns along; one without a name may be an index.
    header = [column for column in written if column or written.count("") == 1]
    if len(rows) < 2 or len(set(header)) != len(header):
        return None
    rows = [row for row in rows[1:] if len(row) == len(written)]
    values = {column: [row[place].strip() for row in rows] for place, column in enumerate(written) if column in header}
    audio: tuple[str, str, str, dict[str, str]] | None = None
    for column, held in values.items():
        if audio is None and (where := _names_recordings(held, names, Path(name).parent.as_posix())):
            audio = (column, *where, {})
    for column, held in values.items():
        if audio is None and (by_end := _spread(held, names)):
            audio = (column, "", "", by_end)
    if audio is None:
        return None
    column, place, suffix, spread = audio
    beside = Path(name).parent.as_posix()
    if is_audio(column) and (_names_recordings([column], names, beside) or _end(column) in spread):
        return None  # its first line says no columns
    columns = {"audio": f"{{{column}}}{suffix}" if suffix else column}
    for other in header:
        said = other.lower()
        what = next((w for w, words in WORDS.items() if re.fullmatch(rf"(?:{words})[_ ]?\d*", said)), "")
        if other == column or not what or not any(values[other]):
            continue
        if what in TIMES and not all(map(is_number, values[other])):
            continue
        if what == "caption":
            columns[what] = f"{columns[what]},{other}" if what in columns else other
        elif what == "label" and what in columns and all(map(is_number, values[columns[what]])):
            columns[what] = other  # numbers of labels stand beside their words
        else:
            columns.setdefault(what, other)
    if "prompt" in columns and "output" not in columns:
        columns = {"output" if what == "label" else what: c for what, c in columns.items()}
    if "output" in columns and "prompt" not in columns:
        columns = {"label" if what == "output" else what: c for what, c in columns.items() if what != "label"}
    if "label" in columns:
        columns.pop("labels", None)
    if not {"output", "label", "labels", "caption"} & set(columns):
        rest = [c for c in header if c != column and any(values[c]) and not all(map(is_number, values[c]))]
        if len(rest) != 1:
            return None
        columns["label" if few(values[rest[0]]) else "caption"] = rest[0]
    _take_times(columns, f"{folder / name}", header)
    told = ""
    if "start" in columns and not _are_times(folder, columns, values, place, suffix, spread):
        told = f"; the times in '{columns.pop('start')}' lie behind the ends of its recordings, which are taken whole"
        columns = {what: c for what, c in columns.items() if what not in ("end", "duration")}
    told += _options_beside(f"{folder / name}", columns, values)
    codes = "labels" in columns and any(map(_CODE.fullmatch, values[columns["labels"]]))
    return _Read(columns=columns, place=place, spread=spread, codes=codes, told=told)


def _options_beside(where: str, columns: dict[str, str], values: dict[str, list[str]]) -> str:
    """What is told of options, which are not read; raises `ForeignError` where answers are their letters alone."""
    options = next((c for c, held in values.items() if re.fullmatch(_OPTIONS, c.lower()) and any(held)), "")
    if not options or "output" not in columns:
        return ""
    if all(re.fullmatch(r"\W*[A-Za-z]?\W*", answer) for answer in values[columns["output"]]):
        raise ForeignError(
            f"{where}: the answers in {columns['output']!r} are letters of what {options!r} offers, and say nothing by "
            "themselves: write them in words, and the options into the question"
        )
    return f"; {options!r} is not read: options stand in the question"


def _dictionary(folder: Path, tables: Sequence[str], name: str) -> DictionaryConfig:
    """The list of what codes mean; raises `ForeignError` where there is none."""
    for other in tables:
        if {_CODES, _MEANING} <= set(next(records(folder / other, most=1), [])):
            return DictionaryConfig(path=f"{LINK}/{other}", code=_CODES, means=_MEANING)
    raise ForeignError(
        f"{folder / name}: its labels are codes (/m/...): put the table of their meanings into the folder, with the "
        f"columns {_CODES} and {_MEANING} (AudioSet's class_labels_indices.csv)"
    )


def _take_times(columns: dict[str, str], where: str, header: Sequence[str]) -> None:
    """Leaves the start and one of end and duration, or none of them, among the columns.

    Raises:
        ForeignError: parts of recordings are stated in another unit.
    """
    if "start" not in columns and "duration" in columns and "offset" in columns.get("end", "").lower():
        columns["start"] = columns.pop("end")  # as NeMo writes it
    if "start" not in columns:
        columns.pop("end", None)
    if "start" not in columns or "end" in columns:
        columns.pop("duration", None)
    other = next((column for column in header if NOT_SECONDS.fullmatch(column) and _BEGINS.search(column)), None)
    if other and "start" not in columns:
        raise ForeignError(f"{where}: column {other!r} says by its name that it is not in seconds: write start and end")


def _names_recordings(values: Sequence[str], names: Sequence[str], beside: str) -> tuple[str, str] | None:
    """The folder below which, and the suffix with which, values are names of recordings; None where they are none.

    Args:
        beside: the folder of the table. Splits hold recordings of the same names: those beside it are meant.
    """
    values = [value for value in values[:LOOKED_AT] if value]
    sounds = {name for name in names if is_audio(name)}
    folders = sorted({"", *(parent.as_posix() for name in sounds for parent in Path(name).parents)} - {"."})
    folders.sort(key=lambda folder: folder != beside and not folder.startswith(f"{beside}/"))
    suffixes = ["", *(suffix for suffix, _ in Counter(Path(name).suffix for name in sounds).most_common())]
    for suffix in suffixes:
        for folder in folders:
            place = f"{folder}/" if folder else ""
            if values and sum(f"{place}{value}{suffix}" in sounds for value in values) > len(values) / 2:
                return folder, suffix
    return None


def _spread(values: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Where the recordings lie that values name wherever they are, in letters of either case, as Windows takes them;
    empty where these are too few, or of equal names."""
    sounds = [name for name in names if is_audio(name)]
    ends = Counter(map(_end, sounds))
    by_end = {_end(name): name for name in sounds if ends[_end(name)] == 1}
    values = [value for value in values[:LOOKED_AT] if value]
    found = sum(_end(value) in by_end for value in values)
    return by_end if values and found > len(values) / 2 else {}


def _end(path: str) -> str:
    return re.split(r"[/\\]", path.strip())[-1].casefold()


def _are_times(
    folder: Path, columns: dict[str, str], values: dict[str, list[str]], place: str, suffix: str, spread: dict[str, str]
) -> bool:
    """Whether starts lie within the recordings; in tables of pieces that were cut out they are times of the whole."""
    named = values[columns["audio"].removesuffix(suffix).strip("{}") if suffix else columns["audio"]]
    inside = behind = 0
    for name, start in list(zip(named, values[columns["start"]], strict=True))[:LISTENED_TO]:
        at = spread.get(_end(name), "") if spread else f"{place}/{name}{suffix}".lstrip("/")
        try:
            seconds = recording_seconds(folder / at)
            inside, behind = inside + (float(start) < seconds), behind + (float(start) >= seconds)
        except (AudioError, ValueError):
            continue
    return inside >= behind


def _write_paths(table: Path, target: Path, read: _Read) -> None:
    header, *rows = records(table, most=None)
    header = [column.strip() for column in header]
    place = header.index(read.columns["audio"])
    for row in rows:
        if len(row) > place:
            row[place] = read.spread.get(_end(row[place]), row[place])
    write(target, "".join("\t".join(" ".join(field.split()) for field in row) + "\n" for row in (header, *rows)))


def few(texts: Sequence[str]) -> bool:
    different = len({text.lower() for text in texts})
    return 1 < different <= MOST_LABELS * len(texts)


def read_words(path: Path) -> str:
    """Text, none of an empty file; raises `ForeignError` where it is no text."""
    data = read_bytes(path)
    return decoded(data, str(path)) if data.strip() else ""


def split_of(name: str) -> str:
    """``train``, ``development`` or ``test`` by a file's name, or by its folder's where that says none."""
    path = Path(name)
    for part in (path.stem, path.parent.name):
        lowered = set(re.split(r"[^a-z]+", part.lower()))
        if lowered & TESTS:
            return "test"
        if lowered & DEVELOPMENT:
            return "development"
        if lowered & {"train", "training"}:
            return "train"
    return ""


def is_number(text: str) -> bool:
    return bool(re.fullmatch(r"-?[\d.,:]*", text))


def below(audio: str) -> str:
    return f"{LINK}/{audio}" if audio else LINK
