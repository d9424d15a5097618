"""What a folder holds: recordings in folders of their labels, a table about recordings, tars, or recordings with texts.

    found = understand(Path("digits"), Path("data/digits"))
    found.origins["all"], found.told         # what import reads (data.datasets.NAME.origin), and sentences about it

Recordings are reached through the link ``recordings`` in the data root, so nothing is copied, and the folder stays as
it is. Where texts stand in no layout that import reads (a text file beside each recording, lines without a header,
names such as ``seven_ann_3.wav``), they are written as a table, ``table.tsv``, to look at and to correct.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_af.config import ImportConfig
from megatron_af.files import write
from megatron_af.foreign import ForeignError, decoded, is_litter, read_bytes
from megatron_af.prepare.importers.label_folders import SPLITS
from megatron_af.prepare.importers.layout import is_audio

LINK, TABLE = "recordings", "table.tsv"
LOOKED_AT = 200
"""Lines of a table, and names of recordings, that decide what it is."""
TESTS = frozenset(["test", "testing", "eval", "evaluation"])
DEVELOPMENT = frozenset(["val", "valid", "validation", "dev"])
WORDS = {
    "prompt": r"question|prompt|query|instruction",
    "output": r"answer|output|response",
    "label": r"label|class|category|target|emotion|genre|species|word|digit|command|tag",
    "caption": r"caption|text|transcript|transcription|description|sentence|said",
    "skill": r"skill|question_?type",
    "start": r"start|start_?s(?:econds)?|begin|onset",
    "end": r"end|end_?s(?:econds)?|offset",
}
"""What -> names of columns that mean it, by themselves or with a number behind them."""
MOST_LABELS = 0.3
"""Different texts among those of a column (or beginnings of names) that are labels, at the most."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """How a folder is imported."""

    origins: dict[str, ImportConfig]
    """``all``; or ``train``, ``test`` and perhaps ``development``, where the folder is divided already."""
    told: list[str]
    """What it was taken for, in sentences."""


class NotUnderstood(ForeignError):
    """A folder that holds nothing we know; the message says what was looked for."""


def understand(folder: Path, root: Path) -> Found:
    """
    Args:
        folder: somebody's own; only read.
        root: data root, which gets the link to the folder, and a table where one must be written.

    Raises:
        NotUnderstood: with what was looked for.
    """
    if not folder.is_dir():
        raise NotUnderstood(f"{folder}: expected a folder with recordings")
    link = root / LINK
    root.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink() or link.resolve() != folder.resolve():
        link.unlink(missing_ok=True)
        link.symlink_to(folder.resolve())
    files = sorted(path for path in folder.rglob("*") if not any(map(is_litter, path.relative_to(folder).parts)))
    names = [path.relative_to(folder).as_posix() for path in files if path.is_file()]
    for look in (_table, _tars, _folders, _texts, _names):
        if (found := look(folder, root, names)) is not None:
            return found
    sounds = sum(map(is_audio, names))
    raise NotUnderstood(
        f"{folder}: {sounds:,} recordings and nothing that says what they are. Expected one of: a folder for each "
        "label; a table (.csv, .tsv) with a column of file names; a text beside each recording (a.wav, a.txt) or a "
        "file of lines 'a.wav some words'; tar files of a WebDataset; names that begin with their label (dog_1.wav)"
    )


def _table(folder: Path, root: Path, names: Sequence[str]) -> Found | None:
    """The tables whose first line names columns, one of them of recordings."""
    tables = [name for name in names if Path(name).suffix.lower() in (".csv", ".tsv", ".tab")]
    found = {name: read for name in tables if (read := _columns(folder, name, names)) is not None}
    if not found:
        return None
    by_split: dict[str, str] = {_split_of(Path(name).stem): name for name in found}
    splits = {split: by_split[split] for split in ("train", "development", "test") if split in by_split}
    first = min(found, key=lambda name: (name.count("/"), name))
    chosen = splits if {"train", "test"} <= set(splits) else {"all": first}
    origins, told = {}, []
    for split, name in chosen.items():
        columns, audio = found[name]
        origins[split] = ImportConfig(format="csv", path=f"{LINK}/{name}", audio=_below(audio), columns=columns)
        said = ", ".join(f"{what} in '{column}'" for what, column in columns.items())
        told.append(f"a table, {name}: {said}" + (f"; recordings below {audio}" if audio else ""))
    if others := sorted(set(found) - set(chosen.values())):
        told.append(f"not read: {', '.join(others)}")
    return Found(origins=origins, told=told)


def _columns(folder: Path, name: str, names: Sequence[str]) -> tuple[dict[str, str], str] | None:
    """What -> column, and the folder that recordings are named from."""
    rows = list(_records(folder / name))
    if len(rows) < 2 or len(set(rows[0])) != len(rows[0]):
        return None
    header, rows = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    values = {column: [row[place].strip() for row in rows] for place, column in enumerate(header)}
    audio = next(((c, *where) for c, held in values.items() if (where := _names_recordings(held, names))), None)
    if audio is None:
        return None
    column, place, suffix = audio
    columns = {"audio": f"{{{column}}}{suffix}" if suffix else column}
    for other in header:
        said = other.strip().lower()
        what = next((w for w, words in WORDS.items() if re.fullmatch(rf"(?:{words})[_ ]?\d*", said)), "")
        if other == column or not what or not any(values[other]):
            continue
        if what == "caption":
            columns[what] = f"{columns[what]},{other}" if what in columns else other
        else:
            columns.setdefault(what, other)
    if "prompt" in columns and "output" not in columns:
        columns = {"output" if what == "label" else what: c for what, c in columns.items()}
    if "output" in columns and "prompt" not in columns:
        columns = {"label" if what == "output" else what: c for what, c in columns.items() if what != "label"}
    if not {"output", "label", "caption"} & set(columns):
        rest = [c for c in header if c != column and any(values[c]) and not all(map(_is_number, values[c]))]
        if len(rest) != 1:
            return None
        columns["label" if _few(values[rest[0]]) else "caption"] = rest[0]
    if "end" in columns and "start" not in columns:
        del columns["end"]
    return columns, place


def _names_recordings(values: Sequence[str], names: Sequence[str]) -> tuple[str, str] | None:
    """The folder below which, and the suffix with which, values are names of recordings; None where they are none."""
    values = [value for value in values[:LOOKED_AT] if value]
    sounds = {name for name in names if is_audio(name)}
    folders = sorted({"", *(parent.as_posix() for name in sounds for parent in Path(name).parents)} - {"."})
    suffixes = ["", *(suffix for suffix, _ in Counter(Path(name).suffix for name in sounds).most_common())]
    for suffix in suffixes:
        for folder in folders:
            place = f"{folder}/" if folder else ""
            if values and sum(f"{place}{value}{suffix}" in sounds for value in values) > len(values) / 2:
                return folder, suffix
    return None


def _tars(folder: Path, root: Path, names: Sequence[str]) -> Found | None:
    tars = [name for name in names if name.endswith(".tar")]
    if not tars or any(map(is_audio, names)):
        return None
    origin = ImportConfig(format="webdataset", path=f"{LINK}/*.tar")
    return Found(origins={"all": origin}, told=[f"{len(tars):,} tar files of a WebDataset"])


def _folders(folder: Path, root: Path, names: Sequence[str]) -> Found | None:
    """A folder per label, perhaps below one per split."""
    sounds = [name.split("/") for name in names if is_audio(name)]
    top = {parts[0] for parts in sounds if len(parts) > 1}
    if not top or 2 * sum(len(parts) > 1 for parts in sounds) < len(sounds):
        return None
    if {name.lower() for name in top} <= SPLITS and len(top) > 1:
        below = {parts[1] for parts in sounds if len(parts) > 2}
        splits: dict[str, str] = {_split_of(name): name for name in sorted(top)}
        if len(below) < 2 or not {"train", "test"} <= set(splits):
            return None
        origins: dict[str, ImportConfig] = {
            split: ImportConfig(format="labels", path=f"{LINK}/{splits[split]}")
            for split in ("train", "development", "test")
            if split in splits
        }
        return Found(origins=origins, told=[f"folders of labels in {', '.join(splits.values())}: {_listed(below)}"])
    if len(top) == 1:  # one folder around all the others
        (only,) = top
        inner = {parts[1] for parts in sounds if len(parts) > 2}
        if len(inner) < 2:
            return None
        origin = ImportConfig(format="labels", path=f"{LINK}/{only}")
        return Found(origins={"all": origin}, told=[f"a folder for each label, below {only}: {_listed(inner)}"])
    origin = ImportConfig(format="labels", path=LINK)
    return Found(origins={"all": origin}, told=[f"a folder for each label: {_listed(top)}"])


def _texts(folder: Path, root: Path, names: Sequence[str]) -> Found | None:
    """A text beside each recording, or files of lines that begin with a recording's name."""
    sounds = [name for name in names if is_audio(name)]
    texts = [name for name in names if Path(name).suffix.lower() in (".txt", ".lab", ".csv", ".tsv", ".text", ".trans")]
    by_stem = {str(Path(name).with_suffix("")): name for name in sounds}
    beside = {by_stem[stem]: name for name in texts if (stem := str(Path(name).with_suffix(""))) in by_stem}
    if sounds and 2 * len(beside) > len(sounds):
        pairs = [(sound, " ".join(_read(folder / text).split())) for sound, text in sorted(beside.items())]
        return _written(root, pairs, f"{len(pairs):,} recordings with a text beside each")
    for text in texts:
        pairs = list(_lines(_read(folder / text), Path(text).parent.as_posix(), by_stem))
        if sounds and 2 * len(pairs) > len(sounds):
            return _written(root, pairs, f"{len(pairs):,} recordings with a line each in {text}")
    return None


def _lines(text: str, beside: str, by_stem: dict[str, str]) -> Iterator[tuple[str, str]]:
    stems = {Path(stem).name: name for stem, name in by_stem.items()}
    for line in text.splitlines():
        name, _, said = re.sub(r"[\t|;,]", "\t", line, count=1).partition("\t")
        if not said.strip():
            name, _, said = line.strip().partition(" ")
        stem = re.sub(r"\.\w{2,5}$", "", name.strip())
        sound = by_stem.get(stem) or by_stem.get(f"{beside}/{stem}") or stems.get(Path(stem).name)
        if sound and (said := said.partition("|")[0].strip().strip('"')):
            yield sound, said


def _names(folder: Path, root: Path, names: Sequence[str]) -> Found | None:
    """Names that begin with their label: ``7_ann_3.wav``, ``dog-12.wav``, ``dog12.wav``."""
    sounds = [name for name in names if is_audio(name)]
    labels = [re.match(r"[^\W\d_]+|\d+", Path(name).stem) for name in sounds]
    if not sounds or not all(labels):
        return None
    said = [match[0] for match in labels if match]
    if not _few(said) or min(Counter(said).values()) < 2:
        return None
    pairs = list(zip(sounds, said, strict=True))
    return _written(root, pairs, f"names that begin with their label: {_listed(set(said))}")


def _written(root: Path, pairs: Sequence[tuple[str, str]], told: str) -> Found:
    """Names and texts as a table: labels where there are few different ones, or else captions."""
    what = "label" if _few([said for _, said in pairs]) else "caption"
    lines = [f"file\t{what}", *("\t".join(part.replace("\t", " ") for part in pair) for pair in pairs)]
    write(root / TABLE, "\n".join(lines) + "\n")
    origin = ImportConfig(format="csv", path=TABLE, audio=LINK, columns={"audio": "file", what: what})
    return Found(origins={"all": origin}, told=[f"{told}; taken for {what}s, written to {root / TABLE}"])


def _few(texts: Sequence[str]) -> bool:
    different = len({text.lower() for text in texts})
    return 1 < different <= MOST_LABELS * len(texts)


def _records(path: Path) -> Iterator[list[str]]:
    """The first lines of a table, divided as its first one is."""
    try:
        lines = [line for line in _read(path).splitlines() if line.strip()][: LOOKED_AT + 1]
    except ForeignError:
        return
    between = "\t" if path.suffix.lower() != ".csv" else max(",;\t|", key=lines[0].count) if lines else ","
    yield from csv.reader(lines, delimiter=between, quoting=csv.QUOTE_NONE if between == "\t" else csv.QUOTE_MINIMAL)


def _read(path: Path) -> str:
    return decoded(read_bytes(path), str(path))


def _split_of(name: str) -> str:
    lowered = set(re.split(r"[^a-z]+", name.lower()))
    if lowered & TESTS:
        return "test"
    return "development" if lowered & DEVELOPMENT else "train" if lowered & {"train", "training"} else ""


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"-?[\d.,:]*", text))


def _below(audio: str) -> str:
    return f"{LINK}/{audio}" if audio else LINK


def _listed(names: set[str]) -> str:
    some = sorted(names)
    return ", ".join(some[:12]) + (f", … ({len(some)} in all)" if len(some) > 12 else "")
