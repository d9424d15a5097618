"""A job's command, what its exit codes mean, and being asked to stop."""

import os
from pathlib import Path

import pytest

from megatron_af.pipeline.job import GIVE_UP, ROOT, STOPPED, Job, cause, describe_exit, python_env

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


def test_the_cause_is_told_from_its_consequences() -> None:
    assert cause([(0, 1), (1, 1)]) == (0, 1)
    assert cause([(0, 1), (1, 137), (2, 1)]) == cause([(0, 1), (1, 137), (2, 139)]) == (1, 137)
    assert cause([(0, 1), (1, -9), (2, 42)]) == (2, 42)
