"""What identifies data, configurations and checkpoints: sha256 digests, defined in this one place.

    digest = digest_tree(checkpoint)          # "sha256:9f2c…"
    record_digest(checkpoint)                 # written beside the checkpoint's files when it is complete
    verify_digest(checkpoint)                 # raises DigestMismatch when a file changed since

A tree's digest covers every file's relative path and contents, in the order of the paths, so it does not
depend on the machine, on file times, or on where the folder lies. What is recorded is that digest and, below it, each
file's own in the form of ``sha256sum``, so that a file that changed is named:

    sha256:9f2c…
    41d0…  checkpoint.json
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from megatron_af.files import write
from megatron_af.foreign import opened, read_bytes

DIGEST_FILE = "digest.txt"
"""Holds a folder's recorded digests; the only file that they leave out."""
READERS = 8
"""Files that are read at the same time: a disk, or a volume over the network, then gives more than one core digests."""


class DigestMismatch(RuntimeError):
    """Files are not the ones that were recorded."""


def digest_file(path: Path) -> str:
    """``sha256:<hex>`` of one file, read in blocks."""
    with opened(path) as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Name -> ``sha256:<hex>`` of files below ``folder``, several at a time."""
    names = list(names)
    if len(names) == 1:
        return {names[0]: digest_file(folder / names[0])}
    with ThreadPoolExecutor(READERS) as readers:
        return dict(zip(names, readers.map(lambda name: digest_file(folder / name), names), strict=True))


def digest_tree(folder: Path) -> str:
    """``sha256:<hex>`` over the sorted relative paths and contents of all files below ``folder``.

    Raises ``FileNotFoundError`` where there is no folder or no file in it: nothing has no digest.
    """
    return _of_tree(digest_files(folder, names_of(folder)), folder)


def digest_place(path: Path) -> str:
    """Of a file, or of a folder's files."""
    return digest_tree(path) if path.is_dir() else digest_file(path)


def names_of(folder: Path) -> list[str]:
    """Relative paths of the files that a folder's digest covers."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in names if name != DIGEST_FILE]


def _of_tree(files: Mapping[str, str], folder: Path) -> str:
    if not files:
        raise FileNotFoundError(f"{folder} holds no files to digest")
    tree = hashlib.sha256()
    for name in sorted(files):
        # Names and digests end with a byte that neither can hold, so no two trees spell the same stream.
        tree.update(name.encode() + b"\0" + files[name].encode() + b"\n")
    return "sha256:" + tree.hexdigest()


def digest_value(value: Any) -> str:
    """``sha256:<hex>`` of a value of dataclasses, mappings, sequences and scalars, whatever their key order."""
    plain = json.dumps(value, default=_plain, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(plain.encode()).hexdigest()


def record_digest(folder: Path, known: Mapping[str, str] | None = None) -> str:
    """Write the folder's digest beside its files and return it.

    Args:
        known: digests of some of the files, from whoever wrote them; these are not read again.
    """
    known = dict(known or {})
    files = digest_files(folder, (name for name in names_of(folder) if name not in known)) | known
    digest = _of_tree(files, folder)
    listed = "".join(f"{files[name].removeprefix('sha256:')}  {name}\n" for name in sorted(files))
    write(folder / DIGEST_FILE, f"{digest}\n{listed}")
    return digest


def recorded_digest(folder: Path) -> str:
    """The digest that was recorded, or the one of the files where none was (not checked against them)."""
    file = folder / DIGEST_FILE
    return _recorded(file)[0] if file.is_file() else digest_tree(folder)


def verify_digest(folder: Path, expected: str = "") -> str:
    """The digest of the files as they are now; ``DigestMismatch`` if it is not the expected (or recorded) one."""
    recorded, listed = _recorded(folder / DIGEST_FILE) if (folder / DIGEST_FILE).is_file() else ("", {})
    files = digest_files(folder, names_of(folder))
    found = _of_tree(files, folder)
    expected = expected or recorded or found
    if found != expected:
        changed = _differences(listed, files) if recorded == expected else ""
        raise DigestMismatch(
            f"{folder}: {changed or f'expected digest {expected}, its files give {found}'}; "
            f"they changed since {expected} was recorded. Use the original files, or record them as a new one."
        )
    return found


def _recorded(file: Path) -> tuple[str, dict[str, str]]:
    """The tree's digest and each file's, which records of earlier versions do not list.

    Raises ``DigestMismatch`` where the record itself is damaged.
    """
    first, *lines = read_bytes(file).decode(errors="replace").splitlines() or [""]
    listed = {name: f"sha256:{digest}" for digest, _, name in (line.partition("  ") for line in lines)}
    if not first.startswith("sha256:") or len(first) != len("sha256:") + 64 or (lines and "" in listed):
        raise DigestMismatch(f"{file} is damaged: it should begin with a digest, sha256:…; use the original file.")
    if listed and _of_tree(listed, file.parent) != first:
        raise DigestMismatch(f"{file} is damaged: what it lists is not what its first line says; use the original.")
    return first, listed


def _differences(listed: Mapping[str, str], found: Mapping[str, str]) -> str:
    """In a few words, which files are not as they were; empty where none is known."""
    told = []
    for what, names in (
        ("is missing", [name for name in listed if name not in found]),
        ("is not what was written", [name for name in listed if name in found and found[name] != listed[name]]),
        ("was not there", [name for name in found if listed and name not in listed]),
    ):
        more = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
        told += [f"{', '.join(names[:3])}{more} {what}"] if names else []
    return "; ".join(told)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"cannot digest a {type(value).__name__}")
