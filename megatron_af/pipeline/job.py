"""A job: one command on some nodes, with the outcomes that both launchers know.

    job = Job(name="align", argv=("tools/pretrain_af.py", "--config", "run.yaml", "stage=align"), nodes=2, processes=8)
    restarts = launch_local(job, print)         # local.py; on a cluster af_pipelines.trainjob's launch_trainjob

Outcomes are exit codes, so that they pass through torchrun, a container and a Kubernetes job unchanged:
0 is done, `GIVE_UP` codes mean that another try would fail the same way, anything else is worth a restart.
"""

import dataclasses
import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path

GIVE_UP = (2, 42)
"""2: the command line or the configuration is wrong (argparse's own code). 42: the job says that it cannot succeed."""
STOPPED = 3
"""A stage that was asked to stop, and wrote a checkpoint if it had begun."""
SHUTDOWN_SECONDS = 270
"""For the step under way and its checkpoint, from SIGTERM to SIGKILL; a little less than a pod's grace period
(runtime.yaml: 300)."""

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: commands name their tools relative to it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What to run and on how many nodes."""

    name: str
    argv: tuple[str, ...]
    """The command behind ``python`` (one process) or behind torchrun (``distributed``)."""
    distributed: bool = True
    nodes: int = 1
    processes: int = 1
    """Processes per node."""
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    owner: str = ""
    """The run's folder, ``output/name``: only one job may write a step of it at a time."""
    step: str = ""
    """Step it belongs to, where it has a name of its own; resources are given to steps."""
    max_restarts: int = 2
    """Restarts of the whole job; on a cluster the training runtime's failure policy counts them instead."""
    deadline_seconds: float = 7 * 24 * 3600.0

    def arguments(self, root: Path = Path()) -> list[str]:
        """What one node gives to ``python``, with the tool looked up in ``root``."""
        launcher = ["-m", "megatron_af.pipeline.torchrun"] if self.distributed else []
        return [*launcher, str(root / self.argv[0]), *self.argv[1:]]


class StepFailed(RuntimeError):
    """A step ended without its result; ``give_up`` says that another try would fail the same way."""

    goes_on = False
    """Whether what it started may still run."""

    def __init__(self, message: str, *, give_up: bool = False) -> None:
        super().__init__(message)
        self.give_up = give_up
        self.exit_code = 2 if give_up else 1


def python_env() -> dict[str, str]:
    """Environment in which every command finds the packages of the checkout, installed or not."""
    paths = [str(ROOT), str(ROOT / "kubeflow"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), "PYTHONUNBUFFERED": "1"}


def cause(codes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The (rank, exit code) that explains the others, of processes that failed, in the order they ended.

    One that gave up or was killed need not be the first to end, and its peers fail because they lose their connections
    to it.
    """

    def rank_of(code: int) -> int:
        return 0 if code in GIVE_UP else 1 if code < 0 or code > 128 else 2

    return min(codes, key=lambda ended: rank_of(ended[1]))


def describe_exit(code: int) -> str:
    """``exit code 1`` or the name of the signal that ended the process (codes above 128 and below 0)."""
    if code == STOPPED:
        return "was asked to stop (exit code 3)"
    number = -code if code < 0 else code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"exit code {code}"
    return f"ended by {name}" + (" (out of memory, or killed from outside)" if name == "SIGKILL" else "")
