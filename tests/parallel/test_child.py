"""A child ends with its parent, however that ends, and a child whose parent is gone already at once."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from megatron_af.pipeline.job import python_env

pytestmark = pytest.mark.slow

CHILD = [sys.executable, "-m", "megatron_af.parallel.child"]
WAITS = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


def test_it_is_killed_with_its_parent() -> None:
    start = f"subprocess.Popen([*{CHILD!r}, str(os.getpid()), '-c', {WAITS!r}])"
    code = f"import os, subprocess, time; {start}; time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=python_env())
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "it outlived its parent"
        time.sleep(0.05)


def test_it_takes_the_commands_place() -> None:
    command = [*CHILD, str(os.getpid()), "-c", "import sys; sys.exit(int(sys.argv[1]))", "7"]
    assert subprocess.run(command, env=python_env(), check=False).returncode == 7


def test_a_parent_that_is_gone_takes_it_along() -> None:
    command = [*CHILD, "1", "-c", "print('ran')"]
    done = subprocess.run(command, env=python_env(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
