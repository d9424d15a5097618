"""A child ends with the process that started it, whatever ends that one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
STARTER = """
import os, subprocess, sys
command = [sys.executable, "-m", "megatron_af.parallel.child", sys.argv[1] or str(os.getpid()), "-c", sys.argv[2]]
child = subprocess.Popen(command, start_new_session=True)
print(child.pid, flush=True)
child.wait()
print(child.returncode, flush=True)
"""
SLEEP = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def start(parent: str, code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", STARTER, parent, code],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_it_ends_with_a_parent_that_is_killed() -> None:
    with start("", SLEEP) as starter:
        assert starter.stdout is not None
        child = psutil.Process(int(starter.stdout.readline()))
        assert starter.stdout.readline() == "up\n"
        starter.kill()
        starter.wait()
        until = time.monotonic() + 10
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_parent_that_was_gone_before_is_noticed() -> None:
    with start("1", SLEEP) as starter:
        assert starter.stdout is not None
        starter.stdout.readline()
        assert starter.stdout.readline() == f"{-signal.SIGKILL}\n"


def test_the_command_gets_its_arguments_and_its_exit_code_is_its_own() -> None:
    with start("", "import sys; sys.exit(42)") as starter:
        assert starter.stdout is not None
        assert starter.stdout.read().split()[-1] == "42"
