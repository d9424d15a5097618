"""Patterns choose what trains; what is frozen costs no gradient, no optimizer state and no bucket."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from megatron_af.config import LoRAConfig, StageConfig
from megatron_af.model import build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.train import trainable
from megatron_af.train.objectives.answer import Answer
from megatron_af.train.objectives.answer_learner import AnswerLearner
from megatron_af.train.trainable import Count, global_counts, part_of, select, table
from tests import tiny
from tests.distributed import run_distributed


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("encoder.layers.0.blocks.0.attn.qkv.weight", "encoder"),
        ("transform.layer_norm.weight", "transform"),
        ("added_rows", "rows"),
        ("lm.decoder.layers.7.xattn.gate_attn", "xattn"),
        ("lm.decoder.layers.7.mlp.linear_fc1.weight", "lm"),
        ("lm.decoder.layers.7.lora.linear_fc1.a.weight", "lora"),
        ("lm.embedding.word_embeddings.weight", "lm"),
    ],
)
def test_every_parameter_belongs_to_a_part(name: str, part: str) -> None:
    assert part_of(name) == part and part in Answer().parts_of(StageConfig(lora=LoRAConfig()))


def test_frozen_patterns_are_exceptions() -> None:
    stage = StageConfig(trainable=("lm.*",), frozen=("lm.*.xattn.*",))
    assert stage.trains("lm.decoder.layers.0.mlp.linear_fc1.weight")
    assert not stage.trains("lm.decoder.layers.0.xattn.gate_ffn")
    assert not StageConfig().trains("encoder.norm.weight")


def cost_of_frozen_parts(rank: int, world_size: int) -> dict[str, Any]:
    config = tiny.config(trainable=tiny.FROZEN_LM)
    stage = config.curriculum["stage"]
    groups = process_groups.initialize(config.parallel, config.seed)
    model = build(config, tiny.VOCABULARY, current_device())
    tiny.fill(model)
    select(model.named_parameters(), stage)
    objective = AnswerLearner(config, stage, model, groups, torch.device("cpu"))
    objective.forward_backward(tiny.step_batch(0, dp_rank=0, dp_size=1, mp_rank=0, mp_size=1))
    objective.optimizer.step_checked()
    trainable = {id(p): p.numel() for _, p in model.named_parameters() if p.requires_grad}
    in_buckets = {
        id(p): p.numel()
        for module in (*objective._chunks, objective._front)
        for buffer in module.buffers
        for bucket in buffer.buckets
        for p in bucket.params_list
    }
    with_state = sum(
        state["exp_avg"].numel()
        for member in objective.optimizer.chained_optimizers
        if member.optimizer is not None
        for state in member.optimizer.state.values()
    )
    frozen_with_gradient = [
        name
        for name, p in model.named_parameters()
        if not p.requires_grad and (p.grad is not None or getattr(p, "main_grad", None) is not None)
    ]
    process_groups.destroy()
    return {
        "trainable": sum(trainable.values()),
        "same parameters in buckets": trainable == in_buckets,
        "with state": with_state,
        "frozen with gradient": frozen_with_gradient,
    }


@pytest.mark.slow
def test_frozen_parts_cost_nothing() -> None:
    cost = run_distributed(cost_of_frozen_parts, 1)[0]
    assert cost["trainable"] > 0
    assert cost["same parameters in buckets"]
    assert cost["with state"] == cost["trainable"]
    assert cost["frozen with gradient"] == []


class Module(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(3, 2)
        self.added_rows = torch.nn.Parameter(torch.zeros(4))
        self.encoder.bias.unused = True


def test_what_trains_is_counted_and_what_nothing_uses_never_trains() -> None:
    module = Module()
    assert select(module.named_parameters(), StageConfig(trainable=("*",), frozen=("added_*",))) == {
        "encoder": Count(trainable=6, frozen=2),
        "rows": Count(trainable=0, frozen=4),
    }
    assert [p.requires_grad for p in (module.encoder.weight, module.encoder.bias, module.added_rows)] == [
        True, False, False,
    ]  # fmt: skip


def test_a_whole_models_counts_take_shared_parts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [
        {"encoder": Count(trainable=5, frozen=1), "lm": Count(trainable=0, frozen=7)},
        {"encoder": Count(trainable=5, frozen=1), "lm": Count(trainable=2, frozen=8)},
        {"encoder": Count(trainable=5, frozen=1)},  # a stage without a part of it
    ]

    def gather(everyone: list[Any], own: Any, group: Any) -> None:
        everyone[:] = shares

    monkeypatch.setattr(trainable.dist, "all_gather_object", gather)
    group: Any = SimpleNamespace(size=lambda: 3)
    found = global_counts(shares[0], group, ["lm", "encoder"], ["encoder"])
    assert list(found.items()) == [
        ("lm", Count(trainable=2, frozen=15)),
        ("encoder", Count(trainable=5, frozen=1)),
    ]
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(table({"lm": Count(trainable=1200, frozen=3), "rows": Count(trainable=1, frozen=0)}, "align"))
    rows = [line.split() for line in console.export_text().replace("│", " ").splitlines()]
    assert ["lm", "1,200", "3"] in rows and ["all", "1,201", "3"] in rows
