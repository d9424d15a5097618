"""A run that hangs, in Python, for data or in a collective, ends with its stacks on disk and a code that says so."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_af.data import storage
from megatron_af.train.callbacks import EndHangs, hang
from tests.distributed import RankError, run_distributed

pytestmark = pytest.mark.slow

TRAINING = """
import ctypes, os, sys, threading, time
from pathlib import Path
from types import SimpleNamespace
from megatron_af.train.callbacks import EndHangs, hang

hang.OTHERS_SECONDS, hang.GRACE_SECONDS = 0.2, 0.5
callback, trainer = EndHangs(1.0), SimpleNamespace(folder=Path(sys.argv[1]), rank=0, step=7)
callback.on_start(trainer)
for _ in range(4):  # moving: longer than a hang all together
    time.sleep(0.4)
    callback.on_step(trainer, {})

def waits_for_data():
    if sys.argv[2] == "python":
        threading.Event().wait()
    elif sys.argv[2] == "interpreter":
        ctypes.PyDLL(None).sleep(100)  # in C, and nobody else may run
    callback.on_end(trainer, "done")
    time.sleep(2.5)

waits_for_data()
print("came to its end")
"""


def run(folder: Path, how: str) -> tuple[int, str, str]:
    """Exit code, what was said, and the stacks."""
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, str(folder), how], capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout + done.stderr, (folder / "hang" / "rank_0.txt").read_text()


def test_what_hangs_in_python_ends_and_says_where(tmp_path: Path) -> None:
    code, said, stacks = run(tmp_path, "python")
    assert code == 1
    assert said.count("\n") == 1 and "behind step 7" in said and str(tmp_path / "hang") in said
    assert "rank 0, behind step 7" in stacks and "in waits_for_data" in stacks


def test_an_interpreter_that_is_stuck_ends_too(tmp_path: Path) -> None:
    code, _, stacks = run(tmp_path, "interpreter")
    assert code == 1 and "in waits_for_data" in stacks


def test_a_run_that_has_ended_is_not_watched(tmp_path: Path) -> None:
    assert run(tmp_path, "nothing") == (0, "came to its end\n", "")


def hanging(rank: int, world_size: int, folder: Path, where: str) -> None:
    """The last rank waits for ever, the others for it in a collective; what they watch for ends later there."""

    def till_all_have_written(seconds: float) -> None:
        assert seconds == hang.OTHERS_SECONDS
        (folder / f"written_{rank}").touch()
        while len(list(folder.glob("written_*"))) < world_size:
            time.sleep(0.01)

    # A rank whose peer has ended writes no stacks, and on a busy machine no number of seconds is surely enough for it.
    hang.time = SimpleNamespace(  # type: ignore[assignment]
        monotonic=time.monotonic, strftime=time.strftime, sleep=till_all_have_written
    )
    callback, trainer = EndHangs(3.0 - rank), SimpleNamespace(folder=folder, rank=rank, step=7)
    dist.barrier()  # as in training, where every step is one
    callback.on_start(trainer)  # type: ignore[arg-type]
    if rank == world_size - 1:
        if where == "python":
            threading.Event().wait()
        storage.opened = open  # type: ignore[assignment]  # ours refuses the pipe that stands in for such a volume
        with ThreadPoolExecutor(1, thread_name_prefix="clips") as readers:  # as data/clips.py reads
            readers.submit(storage.DataRoot(str(folder)).read, "never.wav").result()
    dist.all_reduce(torch.ones(1))


@pytest.mark.parametrize(("where", "seen"), [("python", "in hanging"), ("data", "storage.py")])
def test_a_rank_that_hangs_ends_all_with_the_stacks_of_all(where: str, seen: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never.wav")  # a volume that does not answer
    with pytest.raises(RankError, match="ended with code 1"):
        run_distributed(hanging, 2, tmp_path, where)
    waiting, stuck = ((tmp_path / "hang" / f"rank_{rank}.txt").read_text() for rank in range(2))
    assert "all_reduce" in waiting and seen in stuck and "all_reduce" not in stuck


def test_it_may_be_turned_off(tmp_path: Path) -> None:
    callback, trainer = EndHangs(0.0), SimpleNamespace(folder=tmp_path, rank=0, step=0)
    anything: Any = trainer
    callback.on_start(anything)
    callback.on_step(anything, {})
    time.sleep(0.1)
    callback.on_end(anything, "done")
    assert not list(tmp_path.iterdir())
