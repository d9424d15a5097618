"""Send to MLflow what still waits on disk, after a server was away for longer than the jobs lived.

    python -m megatron_af.tracking runs/demo
"""

import sys
from pathlib import Path

from megatron_af.entry import AGAIN, command
from megatron_af.tracking.delivery import send_waiting
from megatron_af.tracking.spool import Address
from megatron_af.tracking.store import in_words


@command
def main() -> int:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        raise ValueError(f"expected a run's folder, got {sys.argv[1:]}\n{__doc__}")
    delivered, waiting = send_waiting(Path(sys.argv[1]))
    print(f"{len(delivered)} runs are up to date")
    for folder, error in waiting.items():
        print(f"{folder} still waits: {in_words(error, Address.load(folder).uri)}", file=sys.stderr)
    return AGAIN if waiting else 0


if __name__ == "__main__":
    sys.exit(main())
