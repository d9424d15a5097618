"""Servers as processes, which end with the test."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def started(folder: Path, health: str, *command: str, **env: str) -> Iterator[None]:
    """A server, from when it is well."""
    with (folder / f"{command[1]}.log".replace("/", "-")).open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT | env, stdout=log, stderr=log)
    try:
        while True:
            assert process.poll() is None, Path(log.name).read_text()[-2000:]
            try:
                urllib.request.urlopen(health)
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()
