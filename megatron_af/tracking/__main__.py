"""Send to MLflow what still waits on disk, after a server was away for longer than the jobs lived.

    python -m megatron_af.tracking runs/demo
"""

import sys
from pathlib import Path

from megatron_af.tracking.delivery import send_waiting

if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(f"expected a run's folder, got {sys.argv[1:]}\n{__doc__}")
    print(f"{send_waiting(Path(sys.argv[1]))} runs are up to date")
