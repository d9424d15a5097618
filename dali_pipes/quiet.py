"""Silence for C code that prints: libmpg123, inside libsndfile, tells the terminal what it thinks of an MP3.

    with quiet():
        soundfile.read("odd.mp3")       # "Warning: Xing stream size off by more than 1%, ..." goes nowhere

What it says names no file. Python's own ``sys.stderr`` is another thing and is heard as ever, from all threads.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_libc = ctypes.CDLL(None)
_libc.fopen.restype = ctypes.c_void_p
_stderr = ctypes.c_void_p.in_dll(_libc, "stderr")
_nowhere = _libc.fopen(b"/dev/null", b"a")
_lock = threading.Lock()
_inside: list[int | None] = []
"""C's stream before, once for each caller that is inside."""


@contextmanager
def quiet() -> Iterator[None]:
    with _lock:
        _inside.append(_inside[0] if _inside else _stderr.value)
        _stderr.value = _nowhere
    try:
        yield
    finally:
        with _lock:
            before = _inside.pop()
            if not _inside:
                _stderr.value = before
