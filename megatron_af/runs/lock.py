"""One writer for a stage's folder, on one machine or many.

    with StageLock(config.stage_folder("align")):       # raises StageBusy, naming who is at it
        ...
    with after_others(folder, progress.say):            # waits for them instead
        ...

The holder renews the time of a small file (``writer.json``) in the folder, which a shared volume shows to every node. A
holder that died stops renewing, and after ``LOST_SECONDS`` the next one takes over, having seen that for twice the time
of a renewal nothing came, whatever clocks say; on the same machine at once. Who
was paused for that long finds another's name in the file and must not go on: :meth:`StageLock.check` tells it.
"""

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from megatron_af.files import write
from megatron_af.foreign import read_text

FILE = "writer.json"
RENEW_SECONDS = 20.0
LOST_SECONDS = 180.0
"""Well above a renewal over a slow volume, and below the time in which a lost node's job is started again."""
WAIT_SECONDS = 2.0
"""Between two looks at a folder that others hold."""


_held: "dict[Path, StageLock]" = {}


class StageBusy(RuntimeError):
    """Somebody else writes this stage's folder."""

    exit_code = 1


class StageLock:
    """Held from entering to leaving; ``check`` raises where it was lost meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._token = uuid.uuid4().hex
        self._ended = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="stage-lock", daemon=True)

    def __enter__(self) -> Self:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(self._file):
            ensure_free(self._file.parent)
            self._write()
        _held[self._file.parent.resolve()] = self
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._keeper.join()
        _held.pop(self._file.parent.resolve(), None)
        if self._is_ours():
            self._file.unlink(missing_ok=True)

    def check(self) -> None:
        """Before anything is put in place: raises ``StageBusy`` where another process has taken over."""
        if not self._is_ours():
            raise StageBusy(f"{self._file.parent} was taken over by another process while this one did not answer")

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            with contextlib.suppress(OSError):  # a volume that is away for a moment: the next renewal may do
                if not self._is_ours():
                    return
                os.utime(self._file)

    def _write(self) -> None:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "token": self._token, "began": _began(os.getpid())}
        write(self._file, json.dumps(holder))

    def _is_ours(self) -> bool:
        holder = _holder(self._file)
        return holder is not None and holder["token"] == self._token


@contextlib.contextmanager
def after_others(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Holds a folder as soon as nobody else does. One that cannot be written is nobody's, and not held.

    Args:
        say: told once whom it waits for.
    """
    told = False
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(StageLock(folder))
                break
            except StageBusy as busy:
                if not told:
                    say(f"{str(busy).partition(':')[0]}: waiting for it")
                told = True
                time.sleep(WAIT_SECONDS)
            except OSError as error:
                if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                    raise
                break
        yield


def ensure_free(folder: Path) -> None:
    """Raises ``StageBusy`` while somebody writes a stage's folder."""
    holder = _holder(folder / FILE)
    if holder is not None and _is_alive(holder, folder / FILE):
        raise StageBusy(
            f"{folder} is being written by process {holder['pid']} on {holder['host']}: wait for it, stop it, or use "
            f"another name=. If it is gone, this ends by itself within {LOST_SECONDS:.0f} s"
        )


def ensure_kept(folder: Path) -> None:
    """Before anything is put in place: raises ``StageBusy`` where this process has lost the folder that it held."""
    if lock := _held.get(folder.resolve()):
        lock.check()


def _holder(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(read_text(file))
    except (FileNotFoundError, ValueError):
        return None
    return found


def _is_alive(holder: dict[str, Any], file: Path) -> bool:
    if holder["host"] == socket.gethostname():
        return _began(holder["pid"]) == holder["began"]  # another process may have its number by now
    try:
        age = _now_of(file) - (seen := file.stat()).st_mtime
        if -RENEW_SECONDS <= age < LOST_SECONDS:
            return True
        # Dead, or a clock has jumped, which makes a living holder old and a dead one young: does it renew?
        until = time.monotonic() + 2 * RENEW_SECONDS
        while time.monotonic() < until:
            time.sleep(RENEW_SECONDS / 20)
            if file.stat().st_mtime_ns != seen.st_mtime_ns:
                return True
    except FileNotFoundError:
        pass
    return False


def _began(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty where there is none of that number, or a dead one.

    A dead one keeps its number until somebody has waited for it, which a container's first process may never do.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    except (OSError, IndexError, ValueError):
        return ""


def _now_of(file: Path) -> float:
    """The time by the clock that stamps the file, which is the volume's."""
    probe = file.with_name(f".{FILE}.{uuid.uuid4().hex}.now")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        probe.unlink(missing_ok=True)


class _alone:
    """While a lock is looked at and taken: by making a folder, which succeeds for one process on any file system."""

    def __init__(self, file: Path) -> None:
        self._folder = file.with_name(f".{FILE}.taking")

    def __enter__(self) -> None:
        until = time.monotonic() + LOST_SECONDS
        while True:
            try:
                self._folder.mkdir()
                return
            except FileExistsError:
                if time.monotonic() > until:  # who made it died in the instant between
                    self._remove()
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # another one who waited was faster
            self._folder.rmdir()
