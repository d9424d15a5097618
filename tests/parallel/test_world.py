"""A process joins the peers that torchrun started with it, or is a world of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
TOOL = """
import os
import sys
from megatron_af.parallel.world import join_world
join_world()
import torch.distributed as dist
interface = os.environ.get("GLOO_SOCKET_IFNAME")
# in one write: unbuffered, `print` makes one of each argument, and both ranks share the pipe
sys.stdout.write(f"{dist.get_rank()} {dist.get_world_size()} {dist.get_backend()} {interface}\\n")
dist.destroy_process_group()
"""


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
