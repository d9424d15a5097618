"""One node of a training job: torchrun, ended with the exit code of the worker that failed first.

    PET_NNODES=2 PET_NODE_RANK=0 PET_NPROC_PER_NODE=8 PET_MASTER_ADDR=… PET_MASTER_PORT=… \
        python -m af_pipelines.node tools/pretrain_af.py --config configs/demo.yaml stage=align

Plain torchrun turns every failure into exit code 1, which hides from the job controller whether a restart can help.
Workers are never restarted one by one: the launcher restarts the whole job, which then resumes from its checkpoint.
"""

import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run


def exit_code(failure: ChildFailedError) -> int:
    """The first failed worker's code, signals as 128 + number."""
    _, first = failure.get_first_failure()
    return 128 - first.exitcode if first.exitcode < 0 else first.exitcode or 1


def main(argv: list[str]) -> int:
    """Run this node's workers to the end; what torchrun needs to know comes from the PET_ variables."""
    try:
        run(parse_args(["--max-restarts=0", *argv]))  # type: ignore[no-untyped-call]
    except ChildFailedError as failure:
        return exit_code(failure)
    except SignalException as stop:
        return 128 + signal.Signals(stop.sigval).value
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
