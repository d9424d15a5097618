"""The local launcher: nodes of processes, restarts of the whole job, exit codes, nothing left running."""

import errno
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from megatron_af.entry import Cancelled
from megatron_af.pipeline import local
from megatron_af.pipeline.job import Job, StepFailed
from megatron_af.pipeline.local import launch_local

pytestmark = pytest.mark.slow

STANDIN = str(Path(__file__).parent / "standin_train.py")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(local, "STOP_SECONDS", 2.0)
    monkeypatch.setattr(local, "FAILED_STOP_SECONDS", 2.0)


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "tool.py"
    path.write_text(text)
    return str(path)


def job(tool: str, *arguments: str, **changes: object) -> Job:
    return Job(name="prepare", argv=(tool, *arguments), distributed=False, **changes)  # type: ignore[arg-type]


def test_plain_command(tmp_path: Path) -> None:
    said: list[str] = []
    tool = script(tmp_path, "import os, sys; print(sys.argv[1], os.environ['COLOUR'])")
    assert launch_local(job(tool, "hello", env={"COLOUR": "red"}), said.append) == 0
    assert said == ["[prepare] hello red"]


def test_failure_is_tried_again_and_then_told(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(StepFailed, match="prepare: exit code 1, after 2 restarts: disk is full") as failure:
        launch_local(job(script(tmp_path, "raise SystemExit('disk is full')"), max_restarts=2), said.append)
    assert not failure.value.give_up
    assert [line for line in said if "restart" in line] == [
        "[prepare] restart 1 of 2: exit code 1: disk is full",
        "[prepare] restart 2 of 2: exit code 1: disk is full",
    ]


@pytest.mark.parametrize("code", [2, 42])
def test_codes_that_no_restart_mends(tmp_path: Path, code: int) -> None:
    said: list[str] = []
    with pytest.raises(StepFailed, match=f"exit code {code}, which no restart mends: bad YAML") as failure:
        launch_local(job(script(tmp_path, f"import sys; print('bad YAML'); sys.exit({code})")), said.append)
    assert failure.value.give_up
    assert not any("restart 1" in line for line in said)


def test_deadline(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="its deadline; raise deadline_hours") as failure:
        launch_local(job(script(tmp_path, "import time; time.sleep(60)"), deadline_seconds=0.5), lambda line: None)
    assert failure.value.give_up


def test_a_job_whose_lines_nobody_takes_is_stopped_and_not_left_waiting(tmp_path: Path) -> None:
    """More lines than a pipe holds; and it has the time to write its checkpoint."""

    def head(line: str) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    tool = script(
        tmp_path,
        "import pathlib, signal, sys\n"
        "def stop(*_):\n"
        "    pathlib.Path(sys.argv[1]).touch()\n"
        "    sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "while True: print('step', 'x' * 1000, flush=True)\n",
    )
    with pytest.raises(BrokenPipeError):
        launch_local(job(tool, str(tmp_path / "saved"), deadline_seconds=10.0), head)
    assert (tmp_path / "saved").exists()


@pytest.mark.slow
def test_cancel_stops_children_that_ignore_sigterm(tmp_path: Path) -> None:
    pids: list[int] = []

    def note(line: str) -> None:
        pids.append(int(line.split()[-1]))
        if len(pids) == 2:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()

    tool = script(
        tmp_path,
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(os.getpid(), flush=True)\n"
        "if len(sys.argv) < 2: subprocess.Popen([sys.executable, __file__, 'child'], start_new_session=True)\n"
        "time.sleep(60)\n",
    )
    with pytest.raises(Cancelled, match="SIGTERM"):
        launch_local(job(tool), note)
    time.sleep(0.1)
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]


@pytest.mark.timeout(240)
def test_killed_worker_restarts_all_nodes_and_the_job_resumes(tmp_path: Path) -> None:
    said: list[str] = []
    argv = (STANDIN, str(tmp_path), "--steps", "4", "--kill-at", "3")
    assert launch_local(Job(name="align", argv=argv, nodes=2, processes=1, max_restarts=1), said.append) == 1
    assert any("restart 1 of 1: node 1 ended by SIGKILL" in line for line in said)
    done = sorted(line.partition("] ")[2] for line in said if "done" in line)
    assert done == ["rank 0 of 2 done from step 2", "rank 1 of 2 done from step 2"]


@pytest.mark.timeout(240)
def test_exit_code_of_a_worker_passes_through_torchrun(tmp_path: Path) -> None:
    said: list[str] = []
    argv = (STANDIN, str(tmp_path), "--crash-at", "1", "--exit", "42")
    with pytest.raises(StepFailed, match="align: node 1 exit code 42, which no restart mends: row 17 has no audio"):
        launch_local(Job(name="align", argv=argv, nodes=2, processes=1), said.append)
