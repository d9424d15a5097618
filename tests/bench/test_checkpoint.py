"""The bench of checkpoints writes the same state in every way, and says what it cost."""

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_af.bench import checkpoint
from megatron_af.bench.learning import Learning, Mixed, configuration
from megatron_af.config import ParallelConfig
from megatron_af.progress import silent
from tests.distributed import run_distributed

pytestmark = pytest.mark.slow


def rounds(rank: int, world_size: int, folder: Path) -> Any:
    from megatron_af.parallel import groups

    checkpoint.ROUNDS = 2
    made = groups.initialize(ParallelConfig(), 0)
    learning = Learning(configuration(64), made)
    for way in ("public", "packed"):
        learning.seconds(Mixed((1, 2), (40, 50)), way)
    taken = checkpoint._rounds(folder, learning, made, silent())
    trained = (parameter.numel() for _, parameter in learning.model.named_parameters() if parameter.requires_grad)
    return taken, sum(trained)


def test_every_way_saves_weights_and_both_moments(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"  # the GPU's bench has more than this in its folder, and makes none
    ((taken, trained),) = run_distributed(rounds, 1, folder)
    assert taken.keys() == set(checkpoint.WAYS) and all(len(found) == 2 for found in taken.values())
    assert all(0 < stall <= written for found in taken.values() for stall, written in found)
    for way in checkpoint.WAYS:
        size = sum(file.stat().st_size for file in (folder / way).rglob("*") if file.is_file())
        assert size > 3 * 4 * trained, "weights and moments"
        assert size < 3 * 4 * trained * 1.5 + 4e6, "no copy of the weights besides"
    state = torch.load(folder / "public" / "checkpoint.pt", weights_only=False)
    assert state["optimizer_state_dict"]["state"]
