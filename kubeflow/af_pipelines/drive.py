"""Drives a compiled pipeline on this machine, with kfp's subprocess runner.

    state = drive(RunFolder(config), record)        # SUCCEEDED, FAILED or CANCELLED

kfp runs one step after another, each in a process of its own, and shows what that process prints among much else; here
only the steps' own lines pass, and everything goes to ``logs/kfp.log``.
"""

import contextlib
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import psutil

from af_pipelines.execute import Arguments, finish
from af_pipelines.job import Cancelled, cancellable, python_env
from af_pipelines.local import RUN_PID, STOP_GRACE_SECONDS
from af_pipelines.records import RunFolder, RunRecord

STEP_LINE = re.compile(r"^\s*(\[[\w.-]+( \d+)?\] |\| |# )")
"""What a step or the report prints; kfp's executor writes ``[KFP Executor …``."""


def drive(folder: RunFolder, record: RunRecord, pipeline: Path) -> str:
    """Run the pipeline of ``record`` to its end and return its state."""
    # Importing these takes seconds, which `status` and `logs` need not wait for.
    from kfp import components, local

    arguments = Arguments(config=record.config, cluster=record.cluster, launch=record.launch)
    os.environ.update(python_env() | {RUN_PID: str(os.getpid())})
    stopped: list[psutil.Process] = []
    with _only_step_lines(folder.log("kfp")), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that mean nothing on this machine
        try:
            with cancellable(lambda: stopped.extend(_stop_steps())):
                local.init(
                    local.SubprocessRunner(use_venv=False),
                    pipeline_root=str(folder.path / "kfp"),
                    raise_on_error=True,
                )
                components.load_component_from_file(str(pipeline))(
                    config=record.config,
                    cluster=record.cluster,
                    run=record.launch.run,
                    attempt=record.launch.attempt,
                    launcher="local",
                )
        except Cancelled:
            # A step ends when its nodes have: until then nothing is cancelled. kfp does not wait for it.
            psutil.wait_procs(stopped, timeout=2 * STOP_GRACE_SECONDS)
            finish(arguments, "CANCELLED", launcher="local")
            return "CANCELLED"
        except RuntimeError as error:  # "Inner task failed: …"; the step has printed the reason
            if "finished with status" not in str(error):
                raise
            return "FAILED"
    return "SUCCEEDED"


def _stop_steps() -> list[psutil.Process]:
    """Ask the running step's processes to stop, and return them: they stop their nodes, in sessions of their own.

    This comes before anything is raised: a shell between kfp and the step ends first and leaves no trace of it.
    """
    steps = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(child.pid) == os.getsid(0):
                steps.append(child)
    for step in steps:
        with contextlib.suppress(psutil.NoSuchProcess):
            step.send_signal(signal.SIGTERM)
    return steps


@contextlib.contextmanager
def _only_step_lines(raw: Path) -> Iterator[None]:
    raw.parent.mkdir(parents=True, exist_ok=True)
    with raw.open("a", buffering=1) as file, contextlib.redirect_stdout(_StepLines(sys.stdout, file)):
        yield


class _StepLines(io.TextIOBase):
    """Passes the lines of steps on to the terminal and all lines to a file."""

    def __init__(self, terminal: TextIO, file: TextIO) -> None:
        self._terminal, self._file = terminal, file
        self._line = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._file.write(line + "\n")
            if STEP_LINE.match(line):
                self._terminal.write(line.strip() + "\n")
                self._terminal.flush()
        return len(text)
