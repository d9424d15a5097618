"""Does the served model load and answer? In a process of its own, as a server would.

    seconds, trouble = try_loading(uri, "models:/m-1b2c…")                       # from anywhere
    MLFLOW_TRACKING_URI=… python -m megatron_af.release.trial SOURCE      # what it runs
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

LOADING_SECONDS = 900.0
"""Weights of a large model come from a shared disk."""


def try_loading(tracking_uri: str, source: str) -> tuple[float, str]:
    """Load ``source`` and let it answer its input example twice.

    Returns:
        Seconds of the second answer, and what went wrong (empty: nothing).
    """
    root = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": tracking_uri,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "megatron_af.release.trial", source]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOADING_SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        return 0.0, f"it did not load and answer within {LOADING_SECONDS:.0f} s"
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return 0.0, lines[-1] if lines else f"exit code {done.returncode}"
    found = json.loads(done.stdout.splitlines()[-1])
    empty = [answer for answer in found["answers"] if not isinstance(answer, str)]
    return float(found["seconds"]), f"expected text, got {empty[0]!r}" if empty else ""


def main() -> None:
    import mlflow

    model = mlflow.pyfunc.load_model(sys.argv[1])
    example = model.input_example
    model.predict(example)  # the first answer warms up
    started = time.perf_counter()
    answers = list(model.predict(example))
    print(json.dumps({"seconds": time.perf_counter() - started, "answers": answers}))


if __name__ == "__main__":
    main()
