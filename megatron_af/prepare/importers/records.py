"""Records that are no table: objects of a JSON list (MMAU, MMAR, NSynth), and what files are called (CREMA-D, RAVDESS).

    {format: json, path: mmau/mmau-test-mini.json, columns: {audio: audio_id, prompt: question, output: answer, …}}
    {format: files, path: crema-d/AudioWAV, pattern: '\\d+_\\w+_(?P<emotion>\\w+)_\\w+\\.wav', columns: {…}}
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from megatron_af.config import ImportConfig
from megatron_af.data.rows import RowError
from megatron_af.data.storage import DataRoot
from megatron_af.foreign import ForeignError, is_litter
from megatron_af.prepare.importers.columns import Record, check_columns, rows_of_records, wanted
from megatron_af.prepare.importers.layout import Maker, PassedOver, failing, is_audio, object_of, objects

NAME = "name"
"""The field of a file's name, relative to ``path``."""


def json_records(root: DataRoot, origin: ImportConfig) -> Iterator[Maker]:
    """A list of objects, objects by key, or a line for each."""
    asked = wanted(origin)
    found = [value for _, value in objects(root, origin.path, is_one=lambda item: asked <= item.keys())]
    known = list(dict.fromkeys(key for value in found if isinstance(value, dict) for key in value))
    check_columns(origin, known, f"{root}/{origin.path}")
    yield from rows_of_records(root, origin, [_record(f"record {n}", v) for n, v in enumerate(found)])


def _record(where: str, value: object) -> tuple[str, Record | RowError]:
    try:
        return where, value if isinstance(value, RowError) else object_of(value)
    except RowError as error:
        return where, RowError(f"{where}: {error}")


def file_names(root: DataRoot, origin: ImportConfig) -> Iterator[Maker]:
    """A record for each file whose name fits ``origin.pattern``: its named groups, and ``name``."""
    folder = root.local(origin.path)
    if folder is None or not folder.is_dir():
        raise ForeignError(f"{root}/{origin.path}: expected a local folder of recordings")
    try:
        pattern = re.compile(origin.pattern)
    except re.error as error:
        raise ForeignError(f"origin.pattern: {origin.pattern!r} is no regular expression ({error})") from None
    if not origin.pattern:
        raise ForeignError("origin.pattern is empty: say how files are called, such as '(?P<label>[a-z]+)_.*'")
    check_columns(origin, [NAME, *pattern.groupindex], f"{root}/{origin.path}")
    records: list[tuple[str, Record | RowError]] = []
    passed: list[PassedOver] = []
    for number, name in enumerate(_names(folder)):
        fits = pattern.fullmatch(name)
        if not fits and not is_audio(name):
            passed.append(PassedOver(name, "no recording by its suffix, and it does not fit origin.pattern"))
            continue
        records.append((
            f"file {number}",
            {NAME: name, **fits.groupdict(default="")} if fits else RowError(f"{name} does not fit origin.pattern"),
        ))  # fmt: skip
    yield from rows_of_records(root, origin, records)
    yield from map(failing, passed)


def _names(folder: Path) -> list[str]:
    found = [Path(place).relative_to(folder) / name for place, _, names in os.walk(folder) for name in names]
    return sorted(name for path in found if not is_litter(name := path.as_posix()))
