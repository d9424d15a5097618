"""What identifies data, configurations and checkpoints: sha256 digests, defined in this one place.

    digest = digest_tree(checkpoint)          # "sha256:9f2c…"
    record_digest(checkpoint)                 # written beside the checkpoint's files when it is complete
    verify_digest(checkpoint)                 # raises DigestMismatch when a file changed since

A tree's digest covers every file's relative path and contents, in the order of the paths, so it does not
depend on the machine, on file times, or on where the folder lies.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from megatron_af.files import write

DIGEST_FILE = "digest.txt"
"""Holds a folder's recorded digest; the only file that its digest leaves out."""


class DigestMismatch(RuntimeError):
    """Files are not the ones that were recorded."""


def digest_file(path: Path) -> str:
    """``sha256:<hex>`` of one file, read in blocks."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def digest_tree(folder: Path) -> str:
    """``sha256:<hex>`` over the sorted relative paths and contents of all files below ``folder``.

    Raises ``FileNotFoundError`` where there is no folder or no file in it: nothing has no digest.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name != DIGEST_FILE]
    if not names:
        raise FileNotFoundError(f"{folder} holds no files to digest")
    tree = hashlib.sha256()
    for name in names:
        # Names and digests end with a byte that neither can hold, so no two trees spell the same stream.
        tree.update(name.encode() + b"\0" + digest_file(folder / name).encode() + b"\n")
    return "sha256:" + tree.hexdigest()


def digest_value(value: Any) -> str:
    """``sha256:<hex>`` of a value of dataclasses, mappings, sequences and scalars, whatever their key order."""
    plain = json.dumps(value, default=_plain, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(plain.encode()).hexdigest()


def record_digest(folder: Path) -> str:
    """Write the folder's digest beside its files and return it."""
    digest = digest_tree(folder)
    write(folder / DIGEST_FILE, digest + "\n")
    return digest


def recorded_digest(folder: Path) -> str:
    """The digest that was recorded, or the one of the files where none was (not checked against them)."""
    file = folder / DIGEST_FILE
    return file.read_text().strip() if file.is_file() else digest_tree(folder)


def verify_digest(folder: Path, expected: str = "") -> str:
    """The digest of the files as they are now; ``DigestMismatch`` if it is not the expected (or recorded) one."""
    expected = expected or recorded_digest(folder)
    found = digest_tree(folder)
    if found != expected:
        raise DigestMismatch(
            f"{folder}: expected digest {expected}, its files give {found}; "
            "they changed since the digest was recorded. Use the original files, or record them as a new one."
        )
    return found


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"cannot digest a {type(value).__name__}")
