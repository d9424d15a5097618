"""Linears in int8: near the whole weights, exactly what the rounded ones give, and as small as they say."""

from typing import Any

import pytest
import torch
from megatron.core import parallel_state
from torch import Tensor, nn

from megatron_af.config.loading import CONFIGS, load_config
from megatron_af.decoder.int8 import Int8Linear, hold_in_int8
from megatron_af.decoder.lora import merge_adapters
from megatron_af.parallel.device import make_megatron_portable
from megatron_af.parallel.global_state import load_global
from tests.decoder.adapted import FAMILIES, LORA, build, logits
from tests.decoder.fake_world import FIRST_ADDED_ID, fake_world
from tests.decoder.toy import build_chunks, open_gates, relative_error
from tests.distributed import run_distributed


class Linear(nn.Module):
    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight_OI), bias_O


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_is_that_of_its_rounded_weights(dtype: torch.dtype) -> None:
    weight_OI = torch.tensor([[1.27, -0.64, 0.004], [0.0, 0.0, 0.0], [-254.0, 127.0, 3.0]]).to(dtype)
    x_SBI, bias_O = torch.tensor([[[1.0, 2.0, 4.0]]], dtype=dtype), torch.tensor([0.5, 1.0, 2.0], dtype=dtype)
    added = Int8Linear(Linear(weight_OI, bias_O), returns_bias=False)
    assert added.weight_OI.dtype == torch.int8
    torch.testing.assert_close(added.weight_OI[2], torch.tensor([-127, 64, 2], dtype=torch.int8))  # half to even
    found, none = added(x_SBI)
    assert none is None and found.dtype == dtype
    expected = torch.tensor([[[1.27 - 1.28 + 0.5, 1.0, -254.0 + 256.0 + 16.0 + 2.0]]], dtype=dtype)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-2)
    given, bias = Int8Linear(Linear(weight_OI, bias_O), returns_bias=True)(x_SBI)
    torch.testing.assert_close(given + bias_O, found)
    assert bias is not None and torch.equal(bias, bias_O)
    assert Int8Linear(Linear(weight_OI, None), returns_bias=True)(x_SBI)[1] is None


def rounded(rank: int, world_size: int, family: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the whole weights, of int8, and of linears that hold the rounded weights in float32."""
    chunks = build(LORA, FAMILIES[family])
    (lm,) = chunks
    load_global(chunks, None, open_gates)
    merge_adapters(lm)
    (whole,) = logits(chunks)
    weights = [p for name, p in lm.named_parameters() if ".linear_" in name and ".xattn." not in name and p.ndim > 1]
    before = [weight_OI.detach().clone() for weight_OI in weights]
    with torch.no_grad():
        for weight_OI in weights:
            step_O1 = weight_OI.abs().amax(1, keepdim=True) / 127
            weight_OI.copy_(torch.round(weight_OI / step_O1) * step_O1)
        (again,) = logits(chunks)
        for weight_OI, whole_OI in zip(weights, before, strict=True):
            weight_OI.copy_(whole_OI)
    hold_in_int8(lm)
    (held,) = logits(chunks)
    return whole, held, again


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_computes_with_its_rounded_weights(family: str) -> None:
    ((whole, held, again),) = run_distributed(rounded, 1, family)
    assert relative_error(held, again) < 1e-5
    assert 1e-4 < relative_error(held, whole) < 0.1


def sizes(rank: int, world_size: int, name: str) -> dict[str, int]:
    """Bytes of all tensors of the decoder."""
    make_megatron_portable(target="meta")

    def size(lm: nn.Module) -> int:
        return sum(tensor.nbytes for tensor in (*lm.parameters(), *lm.buffers()))

    found: dict[str, int] = {}
    for precision in ("fp32", "bf16"):
        config: Any = load_config(CONFIGS / "model" / f"{name}.yaml", ["name=size", f"precision={precision}"])
        with fake_world(config.parallel, 0), torch.device("meta"):
            (lm,) = build_chunks(config, first_added_id=FIRST_ADDED_ID)
            found[precision] = size(lm)
            if precision == "bf16":
                hold_in_int8(lm)
                found["int8"] = size(lm)
            assert parallel_state.get_tensor_model_parallel_world_size() == 1
    return found


@pytest.mark.slow
def test_what_is_held_is_as_small_as_it_says() -> None:
    (found,) = run_distributed(sizes, 1, "af2_3b")
    linears = 36 * (2048 * (2048 + 512) + 2048**2 + 3 * 2048 * 11_008)
    rows = 36 * (2048 + 512 + 2048 + 2 * 11_008 + 2048)
    assert found["fp32"] == 2 * found["bf16"] and found["int8"] == found["bf16"] - linears + 4 * rows
