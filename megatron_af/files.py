"""How files appear: whole under their names, or not at all, whoever dies and whoever else writes.

    write(folder / "result.json", text)                     # text or bytes
    with appearing(folder / "index.arrow") as draft:        # a place for a library to write to
        save_file(tensors, draft)
    put_in_place(partial_folder, folder)                    # the same for a folder
    append(folder / "skipped.jsonl", line)                  # in one write: whole lines, whoever else appends
    require_room(folder)                                    # OSError now, not after an hour

Everything that is read by another process or after a crash is written this way; logs and spools are not.
``tests/test_structure.py`` looks for other writers. A disk that refuses to take more is told of with the file's name.
"""

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

DRAFT = ".draft"
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""How a disk refuses to take more."""
REPLACED = ".replaced"
"""Behind the name of a folder while another one takes its place."""


def write(path: Path, content: str | bytes) -> None:
    """Replace a file's content; its folder is made if need be."""
    with appearing(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def append(path: Path, content: str | bytes) -> None:
    """Add to a file's end, in one write and onto the disk; it and its folder are made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _naming(path), open(path, "ab", buffering=0, opener=_at_once) as file:
        _write_all(file, content.encode() if isinstance(content, str) else content)
        os.fsync(file.fileno())


def _write_all(file: FileIO, content: bytes) -> None:
    left = memoryview(content)
    while left:  # a disk that becomes full takes a part, and refuses the next
        left = left[file.write(left) :]


def _at_once(name: str, flags: int) -> int:
    """A pipe that nobody reads is refused by the system, not waited for."""
    handle = os.open(name, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(handle, True)
    return handle


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which file it was: of what a disk refuses to take, the system tells no name."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _REFUSED:
            error.filename = str(path)
        raise


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to, which takes its name when the block ends well and is removed otherwise.

    What is neither file nor folder stays what it is: ``/dev/null`` under another file's name would end many a program.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        with tempfile.TemporaryDirectory() as folder:
            yield (draft := Path(folder) / "draft")
            with _naming(path), open(path, "wb", buffering=0, opener=_at_once) as file:
                _write_all(file, draft.read_bytes())
        return
    if not path.name:  # of an output that somebody left empty
        raise IsADirectoryError(errno.EISDIR, "expected the name of a file to write, got a folder", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{_beginning(path.name)}{uuid.uuid4().hex[:12]}{DRAFT}")
    try:
        with _naming(path):
            yield draft
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            draft.replace(path)
            _sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _beginning(name: str) -> str:
    """Of the names of drafts of a file; what stands behind it needs room below a disk's 255 bytes."""
    return f".{name[:200]}."


def require_room(folder: Path) -> None:
    """Find out before anything is computed whether a folder, or who would hold it, takes files; nothing is made.

    Raises:
        OSError: it does not.
    """
    there = folder
    while not os.path.lexists(there):
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        error.filename = str(folder)
        raise


def put_in_place(partial: Path, folder: Path) -> None:
    """Let a complete folder take another one's place; until then the old one can be read there.

    Between two renames there is none for an instant; :func:`settled` brings the old one back if the process died then.
    """
    old = settled(folder).with_name(folder.name + REPLACED)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "expected a folder, or nothing", str(folder))
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    _sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def settled(folder: Path) -> Path:
    """The folder itself, after what a process that died while replacing it had left to do."""
    old = folder.with_name(folder.name + REPLACED)
    if not folder.exists() and old.exists():
        old.rename(folder)
    return folder


def sweep(folder: Path, name: str = "") -> None:
    """Remove what writers left that were killed: of the file of a name, else of all; nobody may be writing there."""
    for draft in folder.glob(f".*{DRAFT}"):
        if not name or draft.name.startswith(_beginning(name)):
            draft.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # a file system that does not open folders
        return
    try:
        os.fsync(handle)
    except OSError:  # or does not sync them
        pass
    finally:
        os.close(handle)
