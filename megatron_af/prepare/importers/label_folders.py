"""A folder per label. Everything that is a recording is imported, whatever its suffix; every other file is listed.

A row is asked for its label among all of them; the label is its class (``meta.class``), and its captions say so.
"""

import os
import re
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from dali_pipes.waves import AudioError, is_recording
from megatron_af.config import ImportConfig
from megatron_af.data.rows import Row
from megatron_af.data.storage import DataRoot
from megatron_af.foreign import ForeignError, is_litter
from megatron_af.prepare.importers.layout import (
    UNFINISHED,
    Maker,
    PassedOver,
    Recordings,
    checked,
    failing,
    is_audio,
    notes_of_labels,
)
from megatron_af.prepare.importers.made_rows import CLASSIFICATION, classification, label_words, of_class

_SPLIT = re.compile(
    r"(?:(train|training)|(val|valid|validation|dev|development)|(test|testing|eval|evaluation))"
    r"(?:[ _-]?(?:set|data|split|audio|wavs?|clips|files))?"
    r"|(fold[ _-]?\d+)",
    re.IGNORECASE,
)


def label_folders(root: DataRoot, origin: ImportConfig) -> Iterator[Maker]:
    folder = root.local(origin.path)
    if folder is None or not folder.is_dir():
        raise ForeignError(f"{root}/{origin.path}: expected a local folder with one folder per label")
    names, passed = _recordings_in(folder)
    folders = {name.split("/")[0] for name in names}
    if splits := splits_among(folders):
        raise ForeignError(
            f"{folder}: its folders are splits ({', '.join(splits)}), not labels; make a data set of each: "
            f"origin.path={origin.path}/{splits[0]}"
        )
    inner = {name.split("/")[1] for name in names}
    if len(folders) == 1 and len(inner) > 1 and all(name.count("/") > 1 for name in names):
        raise ForeignError(
            f"{folder}: all recordings lie in its only folder {min(folders)}, and in folders there "
            f"({', '.join(sorted(inner)[:5])}); if these are the labels: origin.path={origin.path}/{min(folders)}"
        )
    labels = sorted({label_words(name, origin.task) for name in folders})
    recordings = Recordings(root, origin.path)

    def make(name: str, _: object) -> Row:
        label = label_words(name.split("/")[0], origin.task)
        task = origin.task or CLASSIFICATION
        asked = classification(label, labels, origin.prompt, task)
        return of_class(Row(id=name, clips=(recordings.clip(name),), questions=(asked,), task=task), label)

    for name in names:
        yield checked(make, name, None, "recordings")
    yield from map(failing, passed)
    cure = f"name the folder around {folder}, or the one that holds a folder for each"
    yield from notes_of_labels(labels, len(names), cure)


def splits_among(folders: Collection[str]) -> list[str]:
    """The folders that divide recordings into what trains and what is measured; a ``train`` alone may be heard."""
    first = min(folders, default="")
    begins = [0, *(mark.end() for mark in re.finditer(r"[ ._-]", first))]  # FSD50K.dev_audio, FSD50K.eval_audio
    found: dict[str, int | None] = {}
    for begin in begins:
        if not found and all(name.startswith(first[:begin]) for name in folders):
            found = {n: match.lastindex for n in sorted(folders) if (match := _SPLIT.fullmatch(n, begin))}
    return list(found) if len(set(found.values())) > 1 or len(found) == len(set(folders)) > 1 else []


def _recordings_in(folder: Path) -> tuple[list[str], list[PassedOver]]:
    """Names of the recordings, and the files that are none; archive litter counts as nothing."""
    files: list[str] = []
    passed: list[PassedOver] = []
    for label in sorted(folder.iterdir()):
        if is_litter(label.name):
            continue
        if label.name.startswith("."):
            passed.append(PassedOver(label.name, "is hidden: its name begins with a dot"))
            continue
        if label.is_symlink() and folder.resolve().is_relative_to(label.resolve()):
            passed.append(PassedOver(label.name, "is a link to a folder around it"))
            continue
        if not label.is_dir():
            passed.append(PassedOver(label.name, "stands in no label's folder"))
            continue
        for place, folders, names in os.walk(label):
            below = Path(place).relative_to(folder)
            links = [name for name in folders if (Path(place) / name).is_symlink()]
            passed += [
                PassedOver(str(below / name), "is a link to a folder inside a label: not followed") for name in links
            ]
            files += [str(PurePosixPath((below / name).as_posix())) for name in names]
    files = sorted(name for name in files if not is_litter(name))
    with ThreadPoolExecutor(16) as pool:
        reasons = pool.map(lambda name: "" if is_audio(name) else _why_not(folder / name), files)
    found = []
    for name, why in zip(files, reasons, strict=True):
        if why:
            passed.append(PassedOver(name, why))
        else:
            found.append(name)
    return found, passed


def _why_not(path: Path) -> str:
    """Why a file with an unknown suffix is no recording; empty if it is one by its content."""
    if path.suffix.lower() in UNFINISHED:
        return "is not wholly fetched, by its suffix: fetch it again"
    try:
        return "" if is_recording(path) else "no recording by its suffix nor by its content"
    except AudioError as error:
        return f"no recording by its suffix, and {error}"
