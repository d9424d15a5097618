"""Gates in the record: those of every pipeline stage, by global layer, on logged steps and the last one."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_af.train.callbacks.gates import Gates
from tests.distributed import run_distributed

pytestmark = pytest.mark.slow


def gates(rank: int, world_size: int, step: int) -> dict[str, float]:
    """Each rank is a stage of one layer, whose gate is opened by its number."""
    import torch.distributed as dist

    names = {f"lm.decoder.layers.{rank}.xattn.gate_attn": 0.5 * rank, f"lm.decoder.layers.{rank}.xattn.gate_ffn": 0.0}
    parameters = [(name, torch.tensor([value])) for name, value in names.items()]
    parameters.append((f"lm.decoder.layers.{rank}.mlp.weight", torch.zeros(2, 2)))
    trainer: Any = SimpleNamespace(step=step, stage=SimpleNamespace(steps=11))
    trainer.model = SimpleNamespace(named_parameters=lambda: parameters)
    trainer.groups = SimpleNamespace(model=dist.group.WORLD, model_size=world_size)
    record = {"loss": 1.0}
    Gates(5).on_step(trainer, record)
    return record


@pytest.mark.parametrize("step", [5, 10, 11])
def test_every_rank_gets_the_gates_of_all_stages(step: int) -> None:
    expected = {"gate_attn/0": 0.0, "gate_attn/1": math.tanh(0.5), "gate_ffn/0": 0.0, "gate_ffn/1": 0.0}
    for record in run_distributed(gates, 2, step):
        assert record == pytest.approx({"loss": 1.0, **expected})


def test_other_steps_gather_nothing() -> None:
    assert run_distributed(gates, 2, 4) == [{"loss": 1.0}] * 2
