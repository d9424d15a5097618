"""Adapters: what they add, that they fold into the linears they stand beside, and what their dropout drops.

That every layout computes their gradients: tests/train/objectives/test_answer_learner.py.
"""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_af.decoder.lora import Adapter, merge_adapters
from megatron_af.parallel.global_state import gather_global, load_global
from tests.decoder.adapted import FAMILIES, LORA, build, logits
from tests.decoder.toy import (
    ADDED,
    HIDDEN,
    mixed_rows,
    open_gates,
    relative_error,
    run_schedule,
)
from tests.distributed import run_distributed

pytestmark = pytest.mark.slow


def merged(rank: int, world_size: int, lm: dict[str, Any], layout: dict[str, Any]) -> dict[str, Any]:
    chunks = build(LORA, lm, **layout)
    fresh = gather_global(chunks, None)
    load_global(chunks, None, open_gates)
    before = logits(chunks)
    adapted = gather_global(chunks, None)
    for chunk in chunks:
        merge_adapters(chunk)
    after, whole = logits(chunks), gather_global(chunks, None)
    return {"fresh": fresh, "before": before, "adapted": adapted, "after": after, "whole": whole}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", [{}, {"tensor": 2, "sequence": True}], ids=["one", "TP2+SP"])
def test_merged_weights_compute_the_same_without_adapters(family: str, layout: dict[str, Any]) -> None:
    size = layout.get("tensor", 1)
    results = run_distributed(merged, size, FAMILIES[family], layout)
    (before,), (after,) = results[-1]["before"], results[-1]["after"]
    assert relative_error(after, before) <= 1e-5
    adapted, whole = results[0]["adapted"], results[0]["whole"]
    assert not [name for name in whole if ".lora." in name]
    changed = {name for name in whole if not torch.equal(whole[name], adapted[name])}
    assert changed == {name for name in whole if "self_attention.linear" in name or ".mlp.linear" in name} - {
        name for name in whole if name.endswith(".bias")
    }
    name = "lm.decoder.layers.2.mlp.linear_fc2"
    a, b = (adapted[f"lm.decoder.layers.2.lora.linear_fc2.{part}.weight"] for part in "ab")
    assert torch.equal(whole[f"{name}.weight"], adapted[f"{name}.weight"] + 2.0 * b @ a)


def test_fresh_adapters_change_nothing() -> None:
    found = run_distributed(merged, 1, {}, {})[0]["fresh"]
    adapters = {name: weight for name, weight in found.items() if ".lora." in name}
    assert all(weight.any() != name.endswith(".b.weight") for name, weight in adapters.items()) and adapters
    bare = run_distributed(bare_weights, 1)[0]
    assert all(torch.equal(found[name], weight) for name, weight in bare.items())


def bare_weights(rank: int, world_size: int) -> dict[str, Tensor]:
    return gather_global(build(None), None)


def dropped(rank: int, world_size: int, layout: dict[str, Any], rate: float) -> dict[str, Any]:
    """Gradients of this rank's adapters, and what reached each of them in layer 0."""
    chunks = build(dataclasses.replace(LORA, dropout=rate), **layout)
    load_global(chunks, None, open_gates)
    seen: dict[str, Tensor] = {}
    for chunk in chunks:
        chunk.train()
        for target, adapter in chunk.decoder.layers[0].lora.named_children():
            assert isinstance(adapter, Adapter)

            def look(module: Any, inputs: tuple[Tensor], target: str = target) -> None:
                seen.setdefault(target, inputs[0].detach().clone())

            adapter.a.register_forward_pre_hook(look)
    run_schedule(chunks, [mixed_rows(0)], torch.zeros(ADDED, HIDDEN))
    weights = {name: p.grad for chunk in chunks for name, p in chunk.named_parameters() if ".lora." in name}
    return {"seen": seen, "gradients": weights}


def test_dropout_drops_the_same_where_ranks_hold_the_same() -> None:
    one, two = run_distributed(dropped, 2, {"tensor": 2}, 0.5)
    for target in ("linear_qkv", "linear_fc1"):  # each rank has all of what goes in
        assert torch.equal(one["seen"][target], two["seen"][target])
        assert 0.4 < (one["seen"][target] == 0).float().mean() < 0.6
        for layer in range(4):
            name = f"decoder.layers.{layer}.lora.{target}.a.weight"
            assert torch.equal(one["gradients"][name], two["gradients"][name]), name
    for target in ("linear_proj", "linear_fc2"):  # each rank has its own features
        assert not torch.equal(one["seen"][target] == 0, two["seen"][target] == 0)
    one, two = run_distributed(dropped, 2, {"tensor": 2, "sequence": True}, 0.5)  # each rank has its own positions
    assert not torch.equal(one["seen"]["linear_qkv"] == 0, two["seen"]["linear_qkv"] == 0)


def test_recomputation_drops_the_same_again() -> None:
    plain, again = (run_distributed(dropped, 1, {"recompute": how}, 0.5)[0] for how in ("none", "full"))
    none = run_distributed(dropped, 1, {}, 0.0)[0]
    assert plain["gradients"] and (none["seen"]["linear_qkv"] == 0).float().mean() < 0.2
    for name, gradient in plain["gradients"].items():
        assert relative_error(again["gradients"][name], gradient) <= 1e-6, name
        assert relative_error(none["gradients"][name], gradient) > 1e-2, name
