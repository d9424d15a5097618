"""What a parser does with bytes from strangers beside reading them: files elsewhere, programs, pickles, words, memory.

    confined = Confined(place, folder)          # in a process of its own: it cannot be taken back
    confined.begin()
    with confined.watched(len(data)): parse(folder, data)
    confined.problem                            # what it must not have done, or nothing

Python tells of every file it opens, moves or removes, every program it starts and every class a pickle names before it
does so (audit hooks). What is written by no such call is found by looking at the folder.
"""

import os
import re
import resource
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_af.parallel.device import current_device
from megatron_af.train.described_tensors import KNOWN
from tests.house import ROOT

MEMORY = 64 << 20
MEMORY_PER_BYTE = 1000
"""One input may take so much memory, and so much more for each of its bytes."""
ADDRESSES = 8 << 30
"""Beyond what the process has; a request for more fails as it would on a small machine."""
WRITTEN = {"os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.rename": 2, "os.link": 2, "os.truncate": 1,
           "os.chmod": 1, "os.chown": 1, "os.utime": 1}  # fmt: skip
"""Events of what changes files -> how many of the first arguments are paths."""
LISTED = ("os.listdir", "os.scandir")
OF_CPYTHON = "SystemError: deallocated bytearray object has exported buffers"
"""What its reader of pickles prints where a bytearray is longer than the file; what it raises is told of."""
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.startfile", "subprocess.Popen",
             "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "os.kill")  # fmt: skip
_PLACES = {*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, str(ROOT), "/proc", "/sys", "/usr"}
OF_PYTHON = (
    *(f"{Path(place).resolve()}{os.sep}" for place in _PLACES),
    "/dev/null", "/dev/urandom", "/etc/mime.types", "/etc/localtime", "/etc/ssl",
)  # fmt: skip
"""What a process reads of itself: modules, the time zone, the machine."""
_STATUS = re.compile(r"(VmSize|VmHWM|VmRSS):\s+(\d+) kB")


class Confined:
    """
    Args:
        place: a folder of the process's own, in which nothing but ``folder`` may change.
        anywhere: whether the input may name files to read; then only what is written is watched.
    """

    def __init__(self, place: Path, folder: Path, *, anywhere: bool = False) -> None:
        self._place, self._folder, self._anywhere = place, folder, anywhere
        self._inside = tuple(f"{(place / name).resolve()}{os.sep}" for name in (folder.name, "passing"))
        self._watching = False
        self._did: list[str] = []
        self.problem = ""
        self.took_mib = 0.0
        os.setsid()
        said = os.open(place / "said", os.O_RDWR | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(said, stream)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.fsync = lambda handle: None  # nobody asks whether a disk has it, and it takes most of the time
        # Opened once: the memory that is asked for stays this process's.
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._clear = os.open("/proc/self/clear_refs", os.O_WRONLY)
        self._passing = place / "passing"
        self._passing.mkdir()
        tempfile.tempdir = str(self._passing)
        os.chdir(folder.parent)
        self._beside = set(place.iterdir())
        sys.addaudithook(self._heard)

    def begin(self) -> None:
        """From now on memory is bounded, and what is taken is seen: a heap's free blocks would hide it."""
        current_device().return_freed_memory()
        most = self._memory()["VmSize"] * 1024 + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    @contextmanager
    def watched(self, size: int) -> Iterator[None]:
        self._did.clear()
        said = os.fstat(1).st_size
        os.write(self._clear, b"5")  # the most memory so far is what it has now
        before = self._memory()["VmRSS"]
        self._watching = True
        try:
            yield
        finally:
            self._watching = False
        took = 1024 * (self._memory()["VmHWM"] - before)
        self.took_mib = took / 2**20
        if set(self._place.iterdir()) != self._beside:
            self._did.append("wrote outside of its folder")
        if took > MEMORY + MEMORY_PER_BYTE * size:
            self._did.append(f"took {self.took_mib:.0f} MiB for {size} bytes")
        sys.stdout.flush()
        sys.stderr.flush()
        words = os.pread(1, 3000, said).decode(errors="replace").replace(OF_CPYTHON, "")
        if words.strip():
            self._did.append(f"printed {words[:300]!r}")
        self.problem = "; ".join(self._did)

    def _memory(self) -> dict[str, int]:
        """Of this process, in KiB."""
        text = os.pread(self._status, 4096, 0).decode()
        return {name: int(size) for name, size in _STATUS.findall(text)}

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes | os.PathLike):
                writes = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
                self._note("wrote" if writes else "read", path)
        elif event in WRITTEN:
            for path in arguments[: WRITTEN[event]]:
                self._note("changed", path)
        elif event == "os.symlink":
            self._note("changed", arguments[1])
        elif event in LISTED:
            self._note("listed", arguments[0])
        elif event in FORBIDDEN:
            self._did.append(f"called {event} {str(arguments)[:100]}")
        elif event == "pickle.find_class" and arguments[1] not in KNOWN.get(arguments[0], ()):
            self._did.append(f"a pickle asked for {arguments[0]}.{arguments[1]}")

    def _note(self, what: str, path: Any) -> None:
        if isinstance(path, int) or path is None:
            return
        try:
            real = os.path.realpath(os.fsdecode(path)) + os.sep
        except (OSError, ValueError):  # no path at all
            return
        if real.startswith(self._inside):
            return
        if what in ("read", "listed") and (self._anywhere or real.startswith(OF_PYTHON)):
            return
        if real.rstrip(os.sep) != "/dev/null":
            self._did.append(f"{what} {real[:200]}")
