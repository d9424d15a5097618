"""C code is silenced inside, and heard again outside; Python is heard always."""

import ctypes
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dali_pipes.quiet import quiet
from dali_pipes.waves import read_mono


def say(text: bytes) -> None:
    libc = ctypes.CDLL(None)
    stream = ctypes.c_void_p.in_dll(libc, "stderr")
    libc.fputs(text, stream)
    libc.fflush(stream)


def test_c_is_silent_inside_and_python_is_heard(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        say(b"lost\n")
        with quiet():
            say(b"lost\n")
        say(b"lost\n")
        print("python", file=sys.stderr)
    say(b"heard\n")
    assert capfd.readouterr().err == "python\nheard\n"


def test_threads_end_in_any_order(capfd: pytest.CaptureFixture[str]) -> None:
    first, second = threading.Event(), threading.Event()

    def inside() -> None:
        with quiet():
            first.set()
            second.wait(10)

    thread = threading.Thread(target=inside)
    with quiet():
        thread.start()
        first.wait(10)
    say(b"lost\n")
    second.set()
    thread.join()
    say(b"heard\n")
    assert capfd.readouterr().err == "heard\n"


def test_what_libmpg123_thinks_of_an_mp3_is_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "a.mp3", np.sin(np.arange(64_000) / 9), 16_000)
    (tmp_path / "a.mp3").write_bytes(2 * (tmp_path / "a.mp3").read_bytes())
    soundfile.read(tmp_path / "a.mp3")
    assert "Xing stream size off" in capfd.readouterr().err, "the input says nothing"
    read_mono(tmp_path / "a.mp3", start=0.0, duration=2.0)
    assert capfd.readouterr().err == ""
