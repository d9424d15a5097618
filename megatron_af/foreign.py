"""Files from elsewhere: what they are when they are not what they should be, and what no one means to hand over.

    described(b"version https://git-lfs...")      # "is a Git LFS pointer, not the file: run `git lfs pull` where ..."

Messages about a file that cannot be read say what it is, for that names the cure: a download that failed left a web
page, a clone without Git LFS left pointers.
"""

import codecs
import json
import math
import re
import stat
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

_LITTER = frozenset((
    "__MACOSX", ".DS_Store", ".AppleDouble", ".Spotlight-V100", ".Trashes", ".fseventsd", ".TemporaryItems",  # macOS
    "Thumbs.db", "desktop.ini", "$RECYCLE.BIN", "System Volume Information",  # Windows
    "@eaDir", "#recycle", "lost+found", ".Trash-1000", ".snapshot",  # disks and network storage
    ".git", ".cache", ".ipynb_checkpoints", "__pycache__",  # clones, downloads, notebooks
))  # fmt: skip
HEAD_BYTES = 512
"""How much of a file `described` looks at."""
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_LIST = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*(?:\{|$)", re.MULTILINE)
"""How one JSON list of objects begins."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_OTHER = {
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow",
    b"SQLite format 3\x00": "an SQLite database",
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"\x93NUMPY": "a NumPy array",
    b"%PDF-": "a PDF",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "a document of an old office program",
}
"""Files of rows and words that are no text."""
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
}


class ForeignError(ValueError):
    """A file that is not what it should be; the message names it and says what it is."""


def described(head: bytes) -> str:
    """What the beginning of a file shows about it, as a predicate; empty where it shows nothing."""
    head = head[:HEAD_BYTES]
    text = head.lstrip()
    if not head:
        return "is empty"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file: run `git lfs pull` where it was cloned"
    if text[:1] == b"<" and (b"<html" in text.lower() or text[:9].lower() == b"<!doctype"):
        return f"is a web page ({shown(text)}): the download failed"
    if head.startswith(b"\x00\x05\x16\x07"):
        return "is what macOS keeps beside a file (AppleDouble), not the file"
    if head.startswith(b"GGUF"):
        return "is GGUF, weights as llama.cpp has them: take the model's release as safetensors"
    for magic, name in _OTHER.items():
        if head.startswith(magic):
            return f"is {name}: write what it holds as CSV, JSON or JSON Lines"
    if head.startswith(b"PK") and b"[Content_Types].xml" in head:
        return "is a document of an office program (a spreadsheet?): save it as CSV"
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            return f"is compressed ({name}): unpack it"
    if not head.strip(b"\x00"):
        return "begins with nothing but zero bytes: a copy or download that broke off"
    if all(32 <= byte < 127 or byte in b"\r\n\t" for byte in head):
        return f"is text ({shown(text)})"
    return ""


def shown(data: bytes) -> str:
    """The first line of bytes, short and printable, in quotes."""
    line = data.splitlines()[0] if data.splitlines() else b""
    text = line[:40].decode("utf-8", "replace")
    return f"'{''.join(c if c.isprintable() else '.' for c in text)}{'...' if len(line) > 40 else ''}'"


def no_file(path: Path) -> str:
    """What a path is instead of a file, which nobody may open: reading a pipe waits for ever; empty where it is one."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return ""
    return _KINDS.get(stat.S_IFMT(mode), "")


def file_at(path: Path) -> Path:
    """The path, where it may be opened: who reads a pipe, a socket or a device may wait for ever.

    Whoever opens what somebody may have put there does it by this, or by the functions below.

    Raises:
        ForeignError: it is one of these; the message names it.
    """
    if (kind := no_file(path)) and kind != _KINDS[stat.S_IFDIR]:  # of a folder the system itself says so
        raise ForeignError(f"{path} is {kind}, no file")
    return path


def opened(path: Path) -> BufferedReader:
    """A file to read bytes from; raises what :func:`file_at` and the system raise."""
    return file_at(path).open("rb")


def read_bytes(path: Path) -> bytes:
    """What a file holds; raises what :func:`opened` raises."""
    with opened(path) as file:
        return file.read()


def read_text(path: Path) -> str:
    """What a file of ours holds, in UTF-8; raises what :func:`opened` and :func:`decoded` raise."""
    data = read_bytes(path)
    return decoded(data, str(path)) if data else ""


def head_of(source: Path | bytes) -> bytes:
    """The first bytes of a file, none where it cannot be read."""
    if isinstance(source, bytes):
        return source[:HEAD_BYTES]
    if no_file(source):
        return b""
    try:
        with opened(source) as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def is_litter(name: str) -> bool:
    """Whether a path is what archives and file managers leave behind: ``__MACOSX/``, ``._x.wav``, ``.DS_Store``."""
    parts = PurePosixPath(name).parts
    return any(part in _LITTER or part.startswith("._") for part in parts)


def decoded(data: bytes, where: str) -> str:
    r"""Text of a file in UTF-8, or in UTF-16 or -32 with its mark; every line end is ``\n``.

    Raises:
        ForeignError: it is none; the message names the line.
    """
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    if encoding in ("utf-8", "utf-8-sig"):
        check_utf8(data, where)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ForeignError(
            f"{where}, line {line}: not {encoding.removesuffix('-sig').upper()} (byte 0x{data[error.start]:02x}); "
            "save it as UTF-8, for instance by iconv -f windows-1252 -t utf-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_utf8(head: bytes, where: str) -> None:
    """Raises `ForeignError`, which begins with ``where``, if a file that begins so is known to be no text in UTF-8."""
    known = described(head)
    if known and not known.startswith("is text"):
        raise ForeignError(f"{where} {known}")
    if wide := next((name for mark, name in _MARKS.items() if name != "utf-8-sig" and head.startswith(mark)), ""):
        raise ForeignError(f"{where} is {wide.upper()}: save it as UTF-8")
    if head[:HEAD_BYTES].count(0) > len(head[:HEAD_BYTES]) // 4:
        raise ForeignError(f"{where} looks like UTF-16 without its mark, or is no text: save it as UTF-8")


def parse_json(
    data: bytes | str, where: str, objects: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """Decoded JSON, UTF-8 or UTF-16.

    Args:
        objects: what makes an object of its keys and values; without, a dict.

    Raises:
        ForeignError: it is something else; the message begins with ``where``.
    """
    try:
        return json.loads(data, object_pairs_hook=objects)
    except json.JSONDecodeError as error:
        known = described(data if isinstance(data, bytes) else data[:HEAD_BYTES].encode("utf-8", "replace"))
        if known and not known.startswith("is text"):
            raise ForeignError(f"{where} {known}") from None
        said = error.msg.removesuffix(" starting at")  # which its place would follow
        reason = f"{said[:1].lower()}{said[1:]} in line {error.lineno}, column {error.colno}"
        raise ForeignError(f"{where} is not JSON: {reason}") from None
    except UnicodeDecodeError as error:
        raise ForeignError(f"{where} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except RecursionError:
        raise ForeignError(f"{where} is nested too deeply to be data") from None
    except ValueError as error:  # a number of thousands of digits
        raise ForeignError(f"{where} cannot be read: {error}") from None


def is_json_list(head: bytes) -> bool:
    """Whether a file that begins so is one JSON list of objects, and not a line for each."""
    return _LIST.match(head) is not None


def parse_line(line: bytes) -> Any:
    """What a line of JSON Lines holds; raises what :func:`strict_json` raises."""
    return strict_json(line, "; each object has a line of its own")


def strict_json(data: bytes, rule: str = "") -> Any:
    """Decoded JSON in UTF-8, of which nothing is lost.

    Args:
        rule: said where there is less or more than one value.

    Raises:
        ForeignError: it is none, or has a key twice; the message knows no file.
    """
    try:
        text = data.decode("utf-8-sig").strip()
        return json.loads(text, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        known = described(data)
        problem = known if known and not known.startswith("is text") else ""
        problem = problem or (
            f"not UTF-8 (byte 0x{data[error.start]:02x}): save the file as UTF-8, for instance by "
            "iconv -f windows-1252 -t utf-8"
        )
    except json.JSONDecodeError as error:
        behind = text[error.pos :].lstrip()
        column = error.pos - text.rfind("\n", 0, error.pos)
        if not behind:
            problem = f"its JSON ends too early{rule}"
        elif error.msg == "Extra data":
            problem = f"more stands behind the object ({behind[:20]!r}){rule}"
        else:
            problem = f"no JSON in column {column} ({behind[:20]!r})"
    except RecursionError:
        problem = "nested too deeply to be data"
    except ForeignError:
        raise
    except ValueError:
        problem = "a number of thousands of digits"
    raise ForeignError(problem)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ForeignError(f"has the key {twice!r} twice, and only the last would count")
    return found


def is_finite(value: object) -> bool:
    """Whether decoded JSON or YAML is a number to compute with: neither true nor false, NaN, infinite, nor an integer
    of so many digits that no float holds it."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ForeignError: it is something else, or the copy is broken; the message names the file.
        OSError: it cannot be read.
    """
    return parse_json(read_bytes(path), str(path))


def read_record[Record](kind: type[Record], path: Path) -> Record:
    """A JSON object as the dataclass that it was written from; raises what :func:`read_json` raises."""
    content = read_json(path)
    try:
        return kind(**content)
    except TypeError as error:
        problem = str(error).rpartition("() ")[2]
        raise ForeignError(f"{path} is no {kind.__name__} of this version: {problem}; move it away") from None
