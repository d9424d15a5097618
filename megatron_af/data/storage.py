"""The data root: a local folder, or a place in an object store through fsspec.

    root = DataRoot("s3://bucket/audio")            # or a folder
    root.read("shards/000000.tar", offset=512, length=81_920)

Every path is relative and stays inside the root.
"""

import hashlib
import os
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import fsspec

from megatron_af.files import appearing, sweep


class StorageError(OSError):
    """A file that cannot be read or written; the message names it."""


class DataRoot:
    """Files under one folder or URL."""

    def __init__(self, root: str) -> None:
        self._folder = None if "://" in root else Path(root)
        self._url = root.rstrip("/")
        self._remote = None if self._folder is not None else fsspec.core.url_to_fs(root)[0]

    def __str__(self) -> str:
        return self._url

    def local(self, path: str) -> Path | None:
        """The path on this machine, or None in an object store.

        A name with accents is one text in two Unicode forms; a manifest written on Linux finds files named on a Mac.
        """
        if self._folder is None:
            return None
        found = self._folder / _inside(path)
        return found if path.isascii() or _is_there(found) else _in_other_form(self._folder, path)

    def exists(self, path: str) -> bool:
        if (local := self.local(path)) is not None:
            return _is_there(local)
        assert self._remote is not None
        return bool(self._remote.exists(self._address(path)))

    def size(self, path: str) -> int:
        """Bytes of a file.

        Raises:
            StorageError: it cannot be reached.
        """
        try:
            if (local := self.local(path)) is not None:
                return local.stat().st_size
            assert self._remote is not None
            return int(self._remote.size(self._address(path)))
        except OSError as error:
            raise StorageError(f"{self._address(path)}: {error}") from error

    def stamp(self, path: str) -> str:
        """What changes whenever a file is replaced, without reading it; empty where there is none."""
        try:
            if (local := self.local(path)) is not None:
                status = local.stat()
                return f"{status.st_size} {status.st_mtime_ns}"
            assert self._remote is not None
            return str(self._remote.ukey(self._address(path)))
        except OSError:
            return ""

    def digest(self, path: str, offset: int = 0, length: int | None = None) -> str:
        """SHA-256 of a file, or of a part of it; takes no memory for a whole local file.

        Raises:
            StorageError: it cannot be read.
        """
        if length is not None or (local := self.local(path)) is None:
            return hashlib.sha256(self.read(path, offset, length)).hexdigest()
        try:
            with local.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise StorageError(f"{self._address(path)}: {error}") from error

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """A file, or ``length`` bytes of it from ``offset`` on.

        Raises:
            StorageError: it cannot be read, or ends before.
        """
        try:
            if (local := self.local(path)) is not None:
                with local.open("rb", buffering=0) as file:
                    data = file.read() if length is None else os.pread(file.fileno(), length, offset)
            else:
                assert self._remote is not None
                end = None if length is None else offset + length
                data = self._remote.cat_file(self._address(path), start=offset, end=end)
        except OSError as error:
            raise StorageError(f"{self._address(path)}: {error}") from error
        if length is not None and len(data) != length:
            raise StorageError(f"{self._address(path)} ends at byte {offset + len(data)}, before {offset + length}")
        return data

    @contextmanager
    def writing(self, path: str) -> Iterator[IO[bytes]]:
        """A file to fill, which then appears whole: by rename on a disk, by one upload in a store."""
        if (local := self.local(path)) is not None:
            with appearing(local) as draft, draft.open("wb") as file:
                yield file
            return
        assert self._remote is not None
        address = self._address(path)
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            try:
                self._remote.put_file(file.name, address)
            except FileNotFoundError:  # a store with real folders
                self._remote.makedirs(address.rpartition("/")[0], exist_ok=True)
                self._remote.put_file(file.name, address)

    def write(self, path: str, data: bytes) -> None:
        """`writing`, at once."""
        with self.writing(path) as file:
            file.write(data)

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder; none where there is no folder."""
        try:
            if (local := self.local(folder)) is not None:
                return sorted(path.name for path in local.iterdir())
            assert self._remote is not None
            found = self._remote.ls(self._address(folder), detail=False)
            return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)
        except FileNotFoundError:
            return []

    def sweep(self, folder: str) -> None:
        """Removes what killed writers left in a folder on a disk; nobody may be writing there."""
        if (local := self.local(folder)) is not None:
            sweep(local)

    def remove(self, path: str) -> None:
        if (local := self.local(path)) is not None:
            local.unlink(missing_ok=True)
        elif self.exists(path):
            assert self._remote is not None
            self._remote.rm_file(self._address(path))

    def fetch(self, path: str) -> Path:
        """A local copy of a file that is read at random: the file itself, or one kept by fsspec until the end.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if (local := self.local(path)) is not None:
            if not local.is_file():
                raise FileNotFoundError(f"{local} does not exist")
            return local
        return Path(fsspec.open_local(f"simplecache::{self._address(path)}"))

    def _address(self, path: str) -> str:
        return f"{self._url}/{_inside(path)}"


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have: too long, or with a zero byte
        return False


def _in_other_form(folder: Path, path: str) -> Path:
    """The file whose name differs in Unicode form only, part by part; as it is written where there is none."""
    for part in PurePosixPath(path).parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        folder = next((folder / form for form in forms if _is_there(folder / form)), folder / part)
    return folder


def _inside(path: str) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"{path!r} must be relative and stay inside data.root")
    return str(parts)
