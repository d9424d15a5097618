"""Whether the recordings behind a manifest are still the same, at a cost that a million of them can bear.

    digests = Recordings("data", Path("runs")).digests(["dog.wav", "cat.wav"])

Of a recording its size counts, and 32 kB of its beginning and of its middle: a change in the rest of a file that keeps
its size is not seen. What was read once is kept beside the runs and read again only when a file's size or time changed;
in an object store nothing is kept, and sizes alone count.
"""

import hashlib
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from megatron_af.data.storage import DataRoot, StorageError
from megatron_af.foreign import file_at

PIECE_BYTES = 32_768
READERS = 16
KEPT = "recordings.db"


class Recordings:
    """Digests of the files below a data root.

    Args:
        root: ``data.root``.
        output: folder of the runs, where what was read is kept; where it cannot be written, nothing is.
    """

    def __init__(self, root: str, output: Path) -> None:
        self._root, self._output = DataRoot(root), output

    def digests(self, paths: Sequence[str]) -> list[str]:
        """One text for each path, equal as long as the file is the same; of a missing file it says that."""
        with ThreadPoolExecutor(READERS) as pool:
            stamps = list(pool.map(self._stamp, paths))
            known = self._load()
            missing = [(path, stamp) for path, stamp in zip(paths, stamps, strict=True) if (path, stamp) not in known]
            read = dict(zip(missing, pool.map(lambda pair: self._read(*pair), missing), strict=True))
        self._keep(read)
        return [(known | read)[path, stamp] for path, stamp in zip(paths, stamps, strict=True)]

    def _stamp(self, path: str) -> str:
        try:
            local = self._root.local(path)
            if local is None:
                return str(self._root.size(path))
            status = local.stat()
            return f"{status.st_size} {status.st_mtime_ns}"
        except (OSError, ValueError):
            return ""

    def _read(self, path: str, stamp: str) -> str:
        if not stamp:
            return f"{path} missing"
        size = int(stamp.split()[0])
        if self._root.local(path) is None:
            return f"{path} {size}"
        length = min(PIECE_BYTES, size)
        try:
            pieces = self._root.read(path, 0, length) + self._root.read(path, (size - length) // 2, length)
        except StorageError:
            return f"{path} missing"
        return f"{path} {size} {hashlib.sha256(pieces).hexdigest()}"

    def _load(self) -> dict[tuple[str, str], str]:
        file = self._output / KEPT
        if not file.is_file():
            return {}
        with closing(sqlite3.connect(file_at(file), timeout=60)) as kept:
            rows = kept.execute("select path, stamp, digest from recordings where root = ?", (str(self._root),))
            return {(path, stamp): digest for path, stamp, digest in rows}

    def _keep(self, read: dict[tuple[str, str], str]) -> None:
        rows = [(str(self._root), path, stamp, digest) for (path, stamp), digest in read.items() if " " in stamp]
        if not rows:
            return
        try:
            self._output.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._output / KEPT, timeout=60)) as kept, kept:
                kept.execute(
                    "create table if not exists recordings (root, path, stamp, digest, primary key (root, path))"
                )
                kept.executemany("insert or replace into recordings values (?, ?, ?, ?)", rows)
        except (OSError, sqlite3.Error):  # it is only faster with it
            return
