"""Plain linears compute what megatron-core's do, biases and all, and are put nowhere else."""

from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

from megatron_af.decoder.plain import PlainColumn, PlainRow, only_answer
from megatron_af.parallel import groups
from tests import tiny
from tests.distributed import run_distributed


def products(rank: int, world_size: int, tensor: int) -> Any:
    from megatron_af.model import build
    from megatron_af.parallel.device import current_device

    config = tiny.config(tensor=tensor)
    groups.initialize(config.parallel, 0)
    model = build(config, tiny.VOCABULARY, current_device())
    tiny.fill(model)
    (lm,) = model.chunks
    layer = lm.decoder.layers[1]
    linears = {
        "linear_qkv": layer.self_attention.linear_qkv,  # adds its bias
        "linear_fc1": layer.mlp.linear_fc1,  # hands it on
        "linear_proj": layer.self_attention.linear_proj,
        "linear_kv": layer.xattn.attention.linear_kv,
    }
    layer.mlp.linear_fc1.bias = torch.nn.Parameter(torch.ones(linears["linear_fc1"].weight.shape[0]))
    x = {name: torch.randn(3, 2, linear.weight.shape[1]) for name, linear in linears.items()}
    before = {name: linear(x[name]) for name, linear in linears.items()}
    only_answer(lm)
    after = {name: linear(x[name]) for name, linear in linears.items()}
    for name in linears:
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=1e-6)
    assert after["linear_fc1"][1] is not None and after["linear_qkv"][1] is None
    kinds = {type(module) for module in lm.modules()}
    return {kind.__name__ for kind in kinds if issubclass(kind, ColumnParallelLinear | RowParallelLinear)}, lm.training


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2])
def test_the_same_products(tensor: int) -> None:
    own = {"OutputTable", PlainColumn.__name__, PlainRow.__name__}
    parted = {"OutputTable", "ColumnParallelLinear", "RowParallelLinear"}
    for kinds, training in run_distributed(products, tensor, tensor):
        assert kinds == (own if tensor == 1 else parted) and not training
