"""A process joins the peers that torchrun started with it, or is a world of one."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_af.parallel import world
from megatron_af.parallel.world import patience

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
TOOL = """
import os
import sys
from megatron_af.parallel.world import join_world, patience
join_world(patience(7200))
import torch, torch.distributed as dist
from megatron_af.config import ParallelConfig
from megatron_af.parallel.groups import initialize
groups = initialize(ParallelConfig(), 1, patience(7200))
for group in (dist.group.WORLD, groups.data, groups.model):
    assert group._get_backend(torch.device("cpu")).options._timeout.total_seconds() == 7320
interface = os.environ.get("GLOO_SOCKET_IFNAME")
# in one write: unbuffered, `print` makes one of each argument, and both ranks share the pipe
sys.stdout.write(f"{dist.get_rank()} {dist.get_world_size()} {dist.get_backend()} {interface}\\n")
dist.destroy_process_group()
"""


def test_no_collective_gives_up_before_the_run_itself_says_that_it_hangs() -> None:
    assert patience(1800) == timedelta(seconds=1920) and patience(7200) == timedelta(seconds=7320)
    assert patience(5) == timedelta(minutes=30), "peers meet in that time, too"
    assert patience(0) > timedelta(days=99)


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_a_tool_waits_half_an_hour_for_its_peers_on_every_device(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own default for NCCL is ten minutes."""
    given: list[timedelta] = []
    monkeypatch.setattr(world, "current_device", lambda: SimpleNamespace(backend=backend))
    monkeypatch.setattr(world.dist, "init_process_group", lambda backend, timeout: given.append(timeout))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in {**world.ALONE, "GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, value)
    world.join_world()
    assert given == [timedelta(minutes=30)]


@pytest.mark.parametrize("launcher", [[], ["-m", "megatron_af.pipeline.torchrun", "--nproc_per_node=2"]])
def test_alone_and_with_peers(launcher: list[str], tmp_path: Path) -> None:
    tool = tmp_path / "tool.py"
    tool.write_text(TOOL)
    rank = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME")
    environment = {name: value for name, value in os.environ.items() if name not in rank}
    done = subprocess.run(
        [sys.executable, *launcher, str(tool)],
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    size = 2 if launcher else 1
    assert sorted(done.stdout.splitlines()) == [f"{rank} {size} gloo lo" for rank in range(size)]
