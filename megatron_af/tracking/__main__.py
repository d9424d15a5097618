"""Send to MLflow what still waits on disk, after a server was away for longer than the jobs lived.

    python -m megatron_af.tracking runs/demo
"""

import sys
from pathlib import Path

from megatron_af.entry import AGAIN, command
from megatron_af.tracking.delivery import send_waiting
from megatron_af.tracking.store import in_words

from mlflow.exceptions import MlflowException  # isort: skip  (after store, which sets its environment)


@command
def main() -> int:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        raise ValueError(f"expected a run's folder, got {sys.argv[1:]}\n{__doc__}")
    try:
        print(f"{send_waiting(Path(sys.argv[1]))} runs are up to date")
    except MlflowException as error:
        print(in_words(error, "MLflow's store"), file=sys.stderr)
        return AGAIN
    return 0


if __name__ == "__main__":
    sys.exit(main())
