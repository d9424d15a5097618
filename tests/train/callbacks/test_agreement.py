"""One flipped bit in one copy of a weight, or of the optimizer's state, is found and named before it is saved."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_af.config import CheckpointConfig, Config
from megatron_af.runs.paths import latest
from megatron_af.train.callbacks import Callback, Record
from megatron_af.train.callbacks.agreement import CHUNK, Disagreement, bit_sum
from megatron_af.train.trainer import Trainer
from tests import tiny
from tests.data.toy import toy_config
from tests.distributed import run_distributed


def flip(tensor: Tensor, index: int, bit: int) -> None:
    kind = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    tensor.detach().view(-1).view(kind)[index] ^= 1 << bit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_flipped_bit_changes_the_sum_and_so_does_the_order(dtype: torch.dtype) -> None:
    tensor = torch.randn(40, generator=torch.Generator().manual_seed(0)).to(dtype)
    right = bit_sum(tensor).item()
    for index in (0, 1, 39):
        for bit in range(8 * tensor.element_size() - 1):
            flip(tensor, index, bit)
            assert bit_sum(tensor).item() != right
            flip(tensor, index, bit)
    assert bit_sum(tensor).item() == right == bit_sum(tensor.reshape(5, 8).t().contiguous().t()).item()
    assert bit_sum(tensor.flip(0)).item() != right
    assert bit_sum(torch.zeros(0)).item() == 0


def test_a_bit_far_inside_a_large_tensor_counts() -> None:
    tensor = torch.ones(CHUNK + 3)
    right = bit_sum(tensor).item()
    flip(tensor, 5, 3)
    assert bit_sum(tensor).item() != right


class FlipOneBit(Callback):
    """After step 3, in one weight of the last rank."""

    def __init__(self, name: str, kind: str) -> None:
        self._name, self._kind = name, kind

    def on_step(self, trainer: Trainer, record: Record) -> None:
        if self._name and trainer.step == 3 and trainer.rank == trainer.world_size - 1:
            weights = dict(trainer.model.named_parameters())
            weight = next(weight for name, weight in weights.items() if re.search(self._name, name))
            if self._kind:
                states = {id(parameter): state for parameter, _, state in trainer.learner.optimizer.held_state()}
                weight = states[id(weight)][self._kind]
            flip(weight, 0, 1)


def train(rank: int, world_size: int, config: Config, name: str, kind: str) -> str:
    try:
        with Trainer(config, [FlipOneBit(name, kind)]) as trainer:
            trainer.train()
    except Disagreement as error:
        return str(error)
    return ""


FOUND: dict[str, tuple[dict[str, Any], str, str, bool]] = {
    "DP2, of the decoder": ({}, r"xattn.*weight", "", True),
    "DP2, a moment": ({}, r"xattn.*weight", "exp_avg", True),
    "DP2 and ZeRO-1, of the audio side": ({"distributed_optimizer": True, "overlap": True}, "^transform", "", True),
    "TP2, not cut": ({"tensor": 2}, r"gate_attn|norm.*weight", "", True),
    "TP2 and ZeRO-1, a moment": ({"tensor": 2, "distributed_optimizer": True}, r"gate_attn", "exp_avg_sq", True),
    "TP2, of the audio side": ({"tensor": 2, "sequence": True}, "^encoder", "", True),
    "TP2, a moment of the audio side": ({"tensor": 2, "sequence": True}, "^encoder", "exp_avg", True),
    "TP2, nothing": ({"tensor": 2, "sequence": True}, "", "", False),
    "DP2, nothing": ({"distributed_optimizer": True}, "", "", False),
}


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "name", "kind", "found"), FOUND.values(), ids=FOUND)
def test_a_flipped_bit_is_found_and_not_saved(
    parallel: dict[str, Any], name: str, kind: str, found: bool, tmp_path: Path
) -> None:
    config = toy_run(tmp_path, parallel, steps=4, every_steps=1)
    told = run_distributed(train, 2, config, name, kind)
    newest = latest(config.stage_folder("tune") / "checkpoints")
    assert newest is not None
    if not found:
        assert told == ["", ""] and newest.name == "step_00000004"
        return
    assert told[0] == told[1], "all ranks end alike"
    assert (f"({kind} of the optimizer)" in told[0]) == bool(kind)
    assert re.search(name.lstrip("^"), told[0]) and "is not the same on all ranks that hold it (rank" in told[0]
    assert "step 3:" in told[0] and newest.name == "step_00000002"


@pytest.mark.slow
def test_the_last_checkpoint_is_compared_although_its_step_is_no_round_one(tmp_path: Path) -> None:
    config = toy_run(tmp_path, {}, steps=3, every_steps=2)
    told = run_distributed(train, 2, config, r"xattn.*weight", "")
    assert "step 3:" in told[0]
    newest = latest(config.stage_folder("tune") / "checkpoints")
    assert newest is not None and newest.name == "step_00000002"


def toy_run(folder: Path, parallel: dict[str, Any], *, steps: int, every_steps: int) -> Config:
    toy, small = toy_config(folder), tiny.config()
    return replace(
        toy,
        model=replace(small.model, front_end=toy.model.front_end, lm=replace(small.model.lm, vocab=257)),
        curriculum={"tune": replace(small.curriculum["stage"], blend={"a": 1.0}, global_batch_samples=2,
                                    micro_batch_samples=1, max_windows=1, max_text_tokens=128, steps=steps,
                                    trainable=("*",), frozen=())},
        stage="tune",
        output=str(folder / "runs"),
        parallel=replace(toy.parallel, **parallel),
        checkpoint=CheckpointConfig(every_steps=every_steps, agree_every_steps=100),
    )  # fmt: skip
