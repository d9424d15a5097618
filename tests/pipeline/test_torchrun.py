"""The launcher hands on exit codes, and gives workers the time to write a checkpoint."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from megatron_af.pipeline.torchrun import exit_code

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def start(script: Path, *, processes: int = 2) -> "subprocess.Popen[str]":
    launcher = [sys.executable, "-m", "megatron_af.pipeline.torchrun", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.Popen(
        [*launcher, str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(("ending", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_exit_code_is_that_of_the_worker_which_failed_first(ending: str, code: int, tmp_path: Path) -> None:
    script = tmp_path / "tool.py"
    script.write_text(f"import os, sys, time\nif os.environ['RANK'] == '1': {ending}\ntime.sleep(60)\n")
    with start(script) as process:
        assert process.wait(timeout=240) == code, process.stdout and process.stdout.read()


@pytest.mark.parametrize("code", [2, -9])
def test_the_exit_code_is_the_causes_where_all_workers_ended_between_two_looks(code: int) -> None:
    ended = {
        rank: ProcessFailure(local_rank=rank, pid=rank + 1, exitcode=each, error_file="")
        for rank, each in enumerate([-signal.SIGTERM, 1, code, 1])
    }
    assert exit_code(ChildFailedError("tool.py", ended)) == (code if code > 0 else 137)


def test_workers_find_what_a_gpu_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    script = tmp_path / "tool.py"
    names = ("CUDA_DEVICE_MAX_CONNECTIONS", "PYTORCH_CUDA_ALLOC_CONF")
    script.write_text(f"import os\nprint(*(os.environ[name] for name in {names}))\n")
    with start(script, processes=1) as process:
        said, _ = process.communicate(timeout=240)
    assert "8 expandable_segments:True" in said, "a value of the user's own stays"


def test_workers_that_need_longer_than_torchrun_grants_are_not_killed(tmp_path: Path) -> None:
    """torchrun's own 30 s are made 1 s here; what the launcher sets is stronger."""
    script = tmp_path / "tool.py"
    script.write_text(
        "import signal, sys, time\n"
        "def stop(*_):\n    time.sleep(4)\n    print('checkpoint written')\n    sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, stop)\nprint('ready')\ntime.sleep(120)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "1")
        with start(script, processes=1) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("ready"):
                    time.sleep(0.2)
                    process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert "checkpoint written\n" in lines


def test_a_host_name_that_does_not_resolve_delays_nothing(tmp_path: Path) -> None:
    """On one machine only its own address is used; under another name of this machine the old one does not resolve."""
    unshare = ["unshare", "--map-root-user", "--uts"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare --uts is not permitted here")
    script = tmp_path / "tool.py"
    script.write_text(
        "import torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\nx = torch.ones(1)\ndist.all_reduce(x)\n"
        "dist.barrier(dist.new_group([0, 1]))\nprint(f'sum {x.item():.0f}')\n"
    )
    launch = [sys.executable, "-m", "megatron_af.pipeline.torchrun", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(
        [*unshare, "sh", "-c", "hostname nowhere.invalid && exec \"$@\"", "-", *launch],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sum 2") == 2
    assert "nowhere.invalid" not in done.stderr
