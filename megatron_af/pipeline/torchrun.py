"""torchrun for one node of a job: with an exit code that says something, and workers that do not outlive it.

    python -m megatron_af.pipeline.torchrun --standalone --nproc_per_node=2 tools/pretrain_af.py --config …

Plain torchrun turns every failure into exit code 1, which hides whether a stage was stopped (3), cannot run (2) or
broke. Workers are never restarted one by one: the launcher restarts the whole job, which then resumes from its
checkpoint. When asked to end (SIGTERM, SIGINT) they get the time that a step and a checkpoint take, not the 30 s that
torchrun grants before it kills; when this process is killed, they end with it (`child`). On one node nothing asks what
the machine's name resolves to. Workers find the environment that a GPU asks for, where nobody set another.
"""

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from megatron_af.entry import command, importing
from megatron_af.pipeline.job import SHUTDOWN_SECONDS, cause, describe_exit

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

GPU_DEFAULTS = {"CUDA_DEVICE_MAX_CONNECTIONS": "1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
"""What workers must find when they first touch a GPU. One connection: collectives and kernels reach the device in the
order in which they were asked for, which overlapping them rests on. Segments that grow: steps of ever other lengths do
not leave holes."""


def exit_code(failure: "ChildFailedError") -> int:
    """The code of the worker whose end explains the others' (`cause`), signals as 128 + number.

    torchrun looks at its workers now and then: it finds one that gave up and the peers that lost it at one time. Those
    that were still running it ends by SIGTERM, and counts them as well.
    """
    failed = sorted(failure.failures.items(), key=lambda each: each[1].timestamp)
    ended = [(rank, each.exitcode) for rank, each in failed]
    rank, code = cause([each for each in ended if each[1] != -signal.SIGTERM] or ended)
    if code < 0:  # it had no time to tell itself
        print(f"process {rank} {describe_exit(code)}", file=sys.stderr, flush=True)
    return 128 - code if code < 0 else code or 1


@command
def main(argv: list[str]) -> int:
    """Run this node's workers to the end, with torchrun's own arguments (or its PET_ variables).

    Returns:
        0, the code of the worker that failed and explains the others, or 128 + the signal that ended the launcher.
    """
    with importing():
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.run import parse_args, run

    agent = logging.getLogger("torch.distributed.elastic")
    agent.addHandler(logging.NullHandler())
    agent.propagate = False  # what it tells, the workers have told
    arguments = parse_args(["--max-restarts=0", f"--shutdown-timeout={SHUTDOWN_SECONDS}", *argv])  # type: ignore[no-untyped-call]
    command = ["-m"] * arguments.module + [arguments.training_script, *arguments.training_script_args]
    arguments.module, arguments.training_script = True, "megatron_af.parallel.child"
    arguments.training_script_args = [str(os.getpid()), "-u", *command]
    for name, value in GPU_DEFAULTS.items():
        os.environ.setdefault(name, value)
    if arguments.standalone or arguments.nnodes in ("1", "1:1"):
        arguments.local_addr = arguments.local_addr or "127.0.0.1"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        run(arguments)  # type: ignore[no-untyped-call]
    except ChildFailedError as failure:
        return exit_code(failure)
    except SignalException as stop:
        number = signal.Signals(stop.sigval)
        print(f"stopped by {number.name}; the same command goes on from there", file=sys.stderr, flush=True)
        return 128 + number.value
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
