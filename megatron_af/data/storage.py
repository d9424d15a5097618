"""The data root: a local folder, or a place in an object store through fsspec.

    root = DataRoot("s3://bucket/audio")            # or a folder
    root.read("shards/000000.tar", offset=512, length=81_920)

Every path is relative and stays inside the root. A store that does not answer, or answers 503, is asked again for
``AWAY_SECONDS``. Then the run ends, and another try goes on: nothing counts as missing that was not asked for.
"""

import hashlib
import os
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec

from megatron_af.files import appearing, sweep
from megatron_af.foreign import ForeignError, opened

AWAY_SECONDS = 180.0
"""Outages of stores last a minute or two; well below ``launch.hang_seconds``."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 10.0
_ANSWERS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError, ValueError,
            TypeError, NotImplementedError)  # fmt: skip
"""What a store says that has been reached."""
_BUSY = (408, 425, 429)
"""HTTP's words below 500 for: ask again."""


class StorageError(OSError):
    """A file that cannot be read or written; the message names it."""


class StoreAway(RuntimeError):
    """A store that stayed away: it says nothing of the file, which may be there."""

    exit_code = 1


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
        try:
            self._ask(path, lambda store, address: store.info(address))  # fsspec's `exists` is False of any failure
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        """Bytes of a file.

        Raises:
            StorageError: it cannot be reached.
        """
        with self._naming(path):
            if (local := self.local(path)) is not None:
                return local.stat().st_size
            return int(self._ask(path, lambda store, address: store.size(address)))

    def stamp(self, path: str) -> str:
        """What changes whenever a file is replaced, without reading it; empty where there is none."""
        try:
            if (local := self.local(path)) is not None:
                status = local.stat()
                return f"{status.st_size} {status.st_mtime_ns}"
            return str(self._ask(path, lambda store, address: store.ukey(address)))
        except OSError:
            return ""

    def digest(self, path: str, offset: int = 0, length: int | None = None) -> str:
        """SHA-256 of a file, or of a part of it; takes no memory for a whole local file.

        Raises:
            StorageError: it cannot be read.
        """
        if length is not None or (local := self.local(path)) is None:
            return hashlib.sha256(self.read(path, offset, length)).hexdigest()
        with self._naming(path), opened(local) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """A file, or ``length`` bytes of it from ``offset`` on.

        Raises:
            StorageError: it cannot be read, or ends before.
        """
        with self._naming(path):
            if (local := self.local(path)) is not None:
                with opened(local) as file:
                    data = file.read() if length is None else os.pread(file.fileno(), length, offset)
            else:
                end = None if length is None else offset + length
                data = self._ask(path, lambda store, address: store.cat_file(address, start=offset, end=end))
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
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            try:
                self._ask(path, lambda store, address: store.put_file(file.name, address))
            except FileNotFoundError:  # a store with real folders
                self._ask(path, lambda store, address: store.makedirs(address.rpartition("/")[0], exist_ok=True))
                self._ask(path, lambda store, address: store.put_file(file.name, address))

    def write(self, path: str, data: bytes) -> None:
        """`writing`, at once."""
        with self.writing(path) as file:
            file.write(data)

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder; none where there is no folder."""
        try:
            if (local := self.local(folder)) is not None:
                return sorted(path.name for path in local.iterdir())
            found = self._ask(folder, lambda store, address: store.ls(address, detail=False))
            return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)
        except FileNotFoundError:
            return []

    def sweep(self, folder: str) -> None:
        """Removes what killed writers left in a folder on a disk; nobody may be writing there."""
        if (local := self.local(folder)) is not None:
            sweep(local)

    def sweep_beside(self, path: str) -> None:
        """Removes what killed writers of one file left beside it; nobody may be writing it."""
        if (local := self.local(path)) is not None:
            sweep(local.parent, local.name)

    def remove(self, path: str) -> None:
        if (local := self.local(path)) is not None:
            local.unlink(missing_ok=True)
        elif self.exists(path):
            self._ask(path, lambda store, address: store.rm_file(address))

    def fetch(self, path: str) -> Path:
        """A local copy of a file that is read at random: the file itself, or one kept by fsspec until the end.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if (local := self.local(path)) is not None:
            if not local.is_file():
                raise FileNotFoundError(f"{local} does not exist")
            return local
        return Path(self._ask(path, lambda _, address: fsspec.open_local(f"simplecache::{address}")))

    def _ask[T](self, path: str, question: Callable[[Any, str], T]) -> T:
        """What the store says of a file; while it is away it is asked again.

        Raises:
            StoreAway: it stayed away.
            StorageError: it refuses.
            OSError, ValueError: what it says of the file.
        """
        address, until, wait = self._address(path), time.monotonic() + AWAY_SECONDS, FIRST_WAIT_SECONDS
        while True:
            try:
                return question(self._remote, address)
            except Exception as error:  # each kind of store raises what its own library has for it
                status, said = _status(error), str(error.__cause__ or error) or type(error).__name__
                if status in (404, 410):
                    raise FileNotFoundError(f"{address} does not exist") from error
                if status and status < 500 and status not in _BUSY:
                    raise StorageError(f"{address}: {said}") from error
                if not status and _is_answer(error):
                    raise
                if time.monotonic() + wait > until:
                    raise StoreAway(f"{address}: {said}, for {AWAY_SECONDS:.0f} s") from error
                if wait == FIRST_WAIT_SECONDS:
                    print(f"{address}: {said}; asked again for {AWAY_SECONDS:.0f} s", file=sys.stderr, flush=True)
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    @contextmanager
    def _naming(self, path: str) -> Iterator[None]:
        """What the system or a store says of a file becomes a `StorageError` that names it, once."""
        try:
            yield
        except StorageError:
            raise
        except ForeignError as error:
            raise StorageError(str(error)) from error
        except FileNotFoundError as error:
            raise StorageError(f"{self._address(path)} does not exist") from error
        except OSError as error:
            raise StorageError(f"{self._address(path)}: {error.strerror or error}") from error

    def _address(self, path: str) -> str:
        return f"{self._url}/{_inside(path)}"


def _status(error: Exception) -> int | None:
    """HTTP's, which aiohttp knows; fsspec makes "not found" of all of them where it asks for a size."""
    found = [getattr(one, "status", None) for one in (error, error.__cause__)]
    return next((status for status in found if isinstance(status, int)), None)


def _is_answer(error: Exception) -> bool:
    """Whether asking again would say the same."""
    cause = error.__cause__
    unheard = isinstance(cause, OSError) and not isinstance(cause, _ANSWERS)
    return not unheard and (isinstance(error, _ANSWERS) or "Credentials" in type(error).__name__)


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
