"""What a folder holds: recordings in folders of their labels, a table about recordings, tars, or recordings with texts.

    found = understand(Path("digits"), Path("data/digits"))
    found.origins["all"], found.told         # what import reads (data.datasets.NAME.origin), and sentences about it

Recordings are reached through the link ``recordings`` in the data root, so nothing is copied, and the folder stays as
it is. Where texts stand in no layout that import reads (a text file beside each recording, lines without a header,
names such as ``seven_ann_3.wav``), they are written as a table, ``table.tsv``, to look at and to correct.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from megatron_af.config import ImportConfig
from megatron_af.files import write
from megatron_af.foreign import ForeignError, described, head_of, is_litter
from megatron_af.prepare.importers.label_folders import splits_among
from megatron_af.prepare.importers.layout import is_audio
from megatron_af.start.tables import (
    LINK,
    TABLE,
    Found,
    few,
    is_number,
    is_table,
    measured,
    read_words,
    records,
    split_of,
    table,
)

_TRACK = re.compile(
    r"\s*(?:\d+(?:[.,]\d+)?\t\d+(?:[.,]\d+)?\t|(?:WEBVTT|\d+\s*\n)?[\s\S]{0,200}?\d+:\d\d[.,]\d+\s*-->)"
)
"""Audacity's labels, SRT, WebVTT."""


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
    names = sorted(_names_below(folder))
    for look in (table, _tars, _lines_of_recordings, _folders, _texts, _names):
        if (found := look(folder, root, names)) is not None:
            tables = {name for name in names if is_table(name)} if look in (_folders, _names) else set()
            if tables:
                found.told.append(f"not read: {_listed(tables)}, which name no recordings and what these are")
            return found
    sounds = sum(map(is_audio, names))
    raise NotUnderstood(
        f"{folder}: {sounds:,} recordings and nothing that says what they are. Expected one of: a folder for each "
        "label; a table (.csv, .tsv) with a column of file names; a text beside each recording (a.wav, a.txt) or a "
        "file of lines 'a.wav some words'; tar files of a WebDataset; names that begin with their label (dog_1.wav)"
        + "".join(f". {said}" for said in _others(folder, names))
    )


def _names_below(folder: Path) -> Iterator[str]:
    """Names of the files, those of folders included that are links, but for links that lead around themselves."""
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place).resolve()
        folders[:] = [
            name
            for name in folders
            if not is_litter(name)
            and not ((at := Path(place) / name).is_symlink() and here.is_relative_to(at.resolve()))
        ]
        for name in names:
            path = Path(place) / name
            if not is_litter(name) and path.is_file():
                yield path.relative_to(folder).as_posix()


def _others(folder: Path, names: Sequence[str]) -> list[str]:
    """What else lies there and may have been meant, a file of each kind."""
    first = {Path(name).suffix.lower(): name for name in reversed(names) if not is_audio(name)}
    said = []
    for suffix, name in sorted(first.items()):
        known = described(head_of(folder / name))
        if suffix in (".json", ".jsonl"):
            said.append(f"{name} may say it: tools/prepare_data.py import reads JSON (docs/data.md)")
        elif is_table(name):
            said.append(f"{name} has no column of recordings' names beside one called label, caption, question, …")
        elif known and not known.startswith("is text"):
            said.append(f"{name} {known}")
    return said[:4]


def _tars(folder: Path, root: Path, names: Sequence[str]) -> Found | None:
    tars = [name for name in names if name.endswith(".tar")]
    if not tars or any(map(is_audio, names)):
        return None
    origin = ImportConfig(format="webdataset", path=f"{LINK}/*.tar")
    return Found(origins={"all": origin}, told=[f"{len(tars):,} tar files of a WebDataset"])


def _folders(folder: Path, root: Path, names: Sequence[str]) -> Found | None:
    """A folder per label, perhaps below one per split."""
    sounds = [name.split("/") for name in names if is_audio(name)]
    around = ""
    while sounds and len({parts[0] for parts in sounds}) == 1 and all(len(parts) > 2 for parts in sounds):
        around += f"{sounds[0][0]}/"  # one folder around all the others
        sounds = [parts[1:] for parts in sounds]
    top = {parts[0] for parts in sounds if len(parts) > 1}
    if len(top) < 2 or 2 * sum(len(parts) > 1 for parts in sounds) < len(sounds):
        return None
    where = f", below {around.rstrip('/')}" if around else ""
    if divided := splits_among(top):
        labels = {parts[1] for parts in sounds if len(parts) > 2}
        splits: dict[str, str] = {split_of(name): name for name in divided}
        splits, said = measured(splits)
        if len(labels) < 2 or not {"train", "test"} <= set(splits):
            return None
        origins: dict[str, ImportConfig] = {
            split: ImportConfig(format="labels", path=f"{LINK}/{around}{splits[split]}")
            for split in ("train", "development", "test")
            if split in splits
        }
        told = [f"folders of labels in {', '.join(splits.values())}{where}: {_listed(labels)}"]
        told += said
        told += [f"not read: {_listed(others)}"] if (others := top - set(splits.values())) else []
        return Found(origins=origins, told=told)
    origin = ImportConfig(format="labels", path=f"{LINK}/{around}".rstrip("/"))
    return Found(origins={"all": origin}, told=[f"a folder for each label{where}: {_listed(top)}"])


def _by_stem(names: Sequence[str]) -> dict[str, str]:
    return {str(Path(name).with_suffix("")): name for name in names if is_audio(name)}


def _lines_of_recordings(folder: Path, root: Path, names: Sequence[str]) -> Found | None:
    """Files of lines that begin with a recording's name: one, or one in each folder as LibriSpeech has them."""
    by_stem = _by_stem(names)
    pairs: dict[str, str] = {}
    files = []
    for name in names:
        plain = Path(name).suffix.lower() in (".txt", ".lab", ".csv", ".tsv", ".text", ".trans") or name == "text"
        if not plain or str(Path(name).with_suffix("")) in by_stem or _has_columns(folder / name):
            continue
        try:
            text = read_words(folder / name)
        except ForeignError:
            if _folders(folder, root, names) is None:
                raise
            continue  # whatever it is, folders say enough
        if name.rpartition("/")[2] == "text" and (folder / name).with_name("segments").is_file():
            raise NotUnderstood(
                f"{folder / name}: its lines are of parts of recordings, which 'segments' beside it says; write a "
                "table with the columns file, start, end (in seconds) and text"
            )
        if found := dict(_lines(text, Path(name).parent.as_posix(), by_stem)):
            pairs |= found
            files.append(name)
    if 2 * len(pairs) <= len(by_stem):
        return None
    if all(map(is_number, pairs.values())) and _folders(folder, root, names):  # numbers of labels that folders name
        return None
    told = f"{len(pairs):,} recordings with a line each in {_listed(set(files))}"
    return _telling_others(_written(root, sorted(pairs.items()), told), by_stem, set(pairs), "line")


def _has_columns(path: Path) -> bool:
    """Whether a file is a table of three columns or more, and not lines of a name and words."""
    if not is_table(path.name) or not (rows := list(records(path))):
        return False
    counts = {len(row) for row in rows}
    return len(counts) == 1 and min(counts) > 2 and "|" not in read_words(path).partition("\n")[0]


def _texts(folder: Path, root: Path, names: Sequence[str]) -> Found | None:
    """A text beside each recording."""
    by_stem = _by_stem(names)
    texts = [name for name in names if Path(name).suffix.lower() in (".txt", ".lab", ".text", ".trans")]
    beside = {by_stem[stem]: name for name in texts if (stem := str(Path(name).with_suffix(""))) in by_stem}
    if 2 * len(beside) <= len(by_stem):
        return None
    pairs = []
    for sound, text in sorted(beside.items()):
        said = read_words(folder / text)
        if _TRACK.match(said):
            raise NotUnderstood(
                f"{folder / text}: says what is heard when (labels or subtitles with times); write a table with the "
                "columns file, start, end (in seconds) and label or text"
            )
        pairs.append((sound, " ".join(said.split())))
    found = _written(root, pairs, f"{len(pairs):,} recordings with a text beside each")
    return _telling_others(found, by_stem, set(beside), "text")


def _telling_others(found: Found, by_stem: Mapping[str, str], said_of: set[str], what: str) -> Found:
    if others := sorted(set(by_stem.values()) - said_of):
        found.told.append(f"not read: {len(others):,} recordings without a {what}, such as {others[0]}")
    return found


def _lines(text: str, beside: str, by_stem: dict[str, str]) -> Iterator[tuple[str, str]]:
    stems = {Path(stem).name: name for stem, name in by_stem.items()}
    for line in text.split("\n"):
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
    if not few(said) or min(Counter(said).values()) < 2:
        return None
    pairs = list(zip(sounds, said, strict=True))
    return _written(root, pairs, f"names that begin with their label: {_listed(set(said))}")


def _written(root: Path, pairs: Sequence[tuple[str, str]], told: str) -> Found:
    """Names and texts as a table: labels where there are few different ones, or else captions."""
    what = "label" if few([said for _, said in pairs]) else "caption"
    lines = [f"file\t{what}", *("\t".join(part.replace("\t", " ") for part in pair) for pair in pairs)]
    write(root / TABLE, "\n".join(lines) + "\n")
    origin = ImportConfig(format="csv", path=TABLE, audio=LINK, columns={"audio": "file", what: what})
    return Found(origins={"all": origin}, told=[f"{told}; taken for {what}s, written to {root / TABLE}"])


def _listed(names: set[str]) -> str:
    some = sorted(names)
    return ", ".join(some[:12]) + (f", … ({len(some)} in all)" if len(some) > 12 else "")
