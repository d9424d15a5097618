"""A job's command, what its exit codes mean, and being asked to stop."""

import os
import signal
import threading
from pathlib import Path

import pytest

from megatron_af.pipeline.job import GIVE_UP, ROOT, STOPPED, Cancelled, Job, cancellable, describe_exit, python_env

JOB = Job(name="align", argv=("tools/pretrain_af.py", "stage=align"))


def test_one_node_gets_torchrun_and_the_tool_in_its_root() -> None:
    assert JOB.arguments(Path("/app")) == [
        "-m",
        "megatron_af.pipeline.torchrun",
        "/app/tools/pretrain_af.py",
        "stage=align",
    ]
    alone = Job(name="x", argv=("tools/demo.py",), distributed=False)
    assert alone.arguments() == ["tools/demo.py"]
    assert (ROOT / JOB.argv[0]).is_file()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (1, "exit code 1"),
        (STOPPED, "was asked to stop (exit code 3)"),
        (-9, "ended by SIGKILL (out of memory, or killed from outside)"),
        (137, "ended by SIGKILL (out of memory, or killed from outside)"),
        (143, "ended by SIGTERM"),
        (-15, "ended by SIGTERM"),
        (128, "exit code 128"),
        (255, "exit code 255"),
    ],
)
def test_exit_codes_are_told(code: int, said: str) -> None:
    assert describe_exit(code) == said and STOPPED not in GIVE_UP


def test_commands_find_the_checkouts_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/own")
    paths = python_env()["PYTHONPATH"].split(os.pathsep)
    assert paths == [str(ROOT), str(ROOT / "kubeflow"), "/own"]
    monkeypatch.delenv("PYTHONPATH")
    assert len(python_env()["PYTHONPATH"].split(os.pathsep)) == 2 and python_env()["PYTHONUNBUFFERED"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_cancels_and_the_next_change_nothing(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stopped = []
    with pytest.raises(Cancelled, match=number.name) as caught, cancellable():
        try:
            os.kill(os.getpid(), number)
            stopped.append("not asked")
        except Exception:
            stopped.append("an error")
        finally:
            os.kill(os.getpid(), number)
            stopped.append("cleaned up")
    assert stopped == ["cleaned up"] and caught.value.exit_code == 128 + number
    assert signal.getsignal(number) == before


def test_inside_another_and_in_other_threads_it_is_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with cancellable():
        ours = signal.getsignal(signal.SIGTERM)
        assert ours != before
        with cancellable():
            assert signal.getsignal(signal.SIGTERM) == ours
        assert signal.getsignal(signal.SIGTERM) == ours
    assert signal.getsignal(signal.SIGTERM) == before
    seen = []

    def elsewhere() -> None:
        with cancellable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]
