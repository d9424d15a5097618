"""Adapters of fused linears, taken apart for peft: each part does to its projection what ours does to the whole.

That peft loads the folder: tests/train/test_conversion.py.
"""

import pytest
import torch
from torch import Tensor

from megatron_af.convert.adapter import peft_tensors
from megatron_af.convert.language import hugging_face_tensors
from megatron_af.decoder.lora import merge_adapters
from megatron_af.parallel.global_state import load_global
from tests.decoder.adapted import FAMILIES, LORA, build
from tests.decoder.toy import open_gates, toy_config
from tests.distributed import run_distributed

pytestmark = pytest.mark.slow


def both(rank: int, world_size: int, family: str) -> dict[str, dict[str, Tensor]]:
    lm = toy_config(lm=FAMILIES[family]).model.lm
    chunks = build(LORA, FAMILIES[family], tensor=world_size)
    load_global(chunks, None, open_gates)
    adapters = {name: tensor.clone() for name, tensor in peft_tensors(chunks, lm)}
    for chunk in chunks:
        merge_adapters(chunk)
    merged = {name: tensor.clone() for name, tensor in hugging_face_tensors(chunks, lm)}
    bare = chunks  # without adapters now
    load_global(bare, None, open_gates)
    return {"adapters": adapters, "merged": merged, "bare": dict(hugging_face_tensors(bare, lm))}


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_part_is_adapted_as_in_the_whole(family: str, world_size: int) -> None:
    first, *others = run_distributed(both, world_size, family)
    adapters, merged, bare = first["adapters"], first["merged"], first["bare"]
    assert all(not tensor for other in others for tensor in other.values())
    changed = {name for name in bare if not torch.equal(bare[name], merged[name])}
    assert {f"base_model.model.{name.removesuffix('.weight')}" for name in changed} == {
        name.rsplit(".lora_", 1)[0] for name in adapters
    }
    for name in changed:
        at = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = adapters[f"{at}.lora_A.weight"], adapters[f"{at}.lora_B.weight"]
        assert a.shape == (LORA.rank, bare[name].shape[1]) and b.shape == (bare[name].shape[0], LORA.rank)
        torch.testing.assert_close(bare[name] + LORA.alpha / LORA.rank * b @ a, merged[name], rtol=1e-5, atol=1e-5)
