"""Parts of whole tensors: cut, joined, padded."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from megatron_af.decoder.added_tokens import TokenTable
from megatron_af.parallel.global_state import Placement, fill, gather_global, load_global
from tests.decoder.toy import build_chunks, open_gates, start_layout, toy_config
from tests.distributed import run_distributed


@settings(max_examples=50, deadline=None)
@given(size=st.sampled_from([1, 2, 4]), halves=st.sampled_from([1, 2]), part=st.integers(1, 3), dim=st.integers(0, 1))
def test_join_undoes_take(size, halves, part, dim):
    shape = [3, 3]
    shape[dim] = size * halves * part
    whole = torch.arange(9 * shape[dim] // 3).view(shape)
    common = {"name": "w", "shape": whole.shape, "dim": dim, "size": size, "halves": halves}
    placements = [Placement(rank=rank, local_length=halves * part, **common) for rank in range(size)]
    parts = [placement.take(whole) for placement in placements]
    assert torch.equal(placements[0].join(parts), whole)
    if halves == 2:
        gate, up = whole.chunk(2, dim)
        for rank, found in enumerate(parts):
            expected = torch.cat([gate.chunk(size, dim)[rank], up.chunk(size, dim)[rank]], dim)
            assert torch.equal(found, expected)


def test_a_padded_table_is_filled_with_zeros():
    whole = torch.arange(1.0, 11.0).view(10, 1)
    parts = []
    for rank in range(2):
        placement = Placement(name="t", shape=whole.shape, dim=0, rank=rank, size=2, local_length=8)
        parameter = nn.Parameter(torch.full((8, 1), 9.0))
        fill(parameter, placement, placement.take(whole))
        parts.append(parameter.detach())
    assert parts[1].flatten().tolist() == [9, 10, 0, 0, 0, 0, 0, 0]
    assert torch.equal(placement.join(parts), whole)


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"w: expected shape \(2, 3\), got \(3, 2\)"):
        Placement(name="w", shape=torch.Size([2, 3])).take(torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("vocab", "first", "added", "size", "rows"),
    [
        (151_936, 151_665, 4, 1, 152_576),
        (151_936, 151_665, 4, 8, 152_576),
        (151_936, 151_936, 4, 16, 153_600),
        (90, 90, 4, 2, 128),
        (64, 60, 4, 1, 64),
    ],
)
def test_rows_of_the_padded_table(vocab, first, added, size, rows):
    table = TokenTable(vocab=vocab, first_added_id=first, num_added=added, tensor_size=size, tensor_rank=0)
    assert table.padded_rows == rows and table.local_rows * size == rows


def round_trip(rank: int, world_size: int) -> list[str]:
    config = toy_config(tensor=2, pipeline=2, virtual_pipeline=2)
    start_layout(config.parallel)
    chunks = build_chunks(config)
    front = nn.Linear(2, 3)
    load_global(chunks, front, open_gates)
    weights = gather_global(chunks, front, "data")
    assert bool(weights) == (rank == 0)
    assert all(torch.equal(weight, open_gates(name, weight.shape)) for name, weight in weights.items())
    return sorted(weights)


@pytest.mark.slow
def test_what_is_loaded_is_what_is_gathered():
    names = run_distributed(round_trip, 4)[0]
    assert {"weight", "bias", "lm.embedding.word_embeddings.weight", "lm.decoder.final_layernorm.weight"} < set(names)
    assert {name.split(".")[3] for name in names if ".layers." in name} == {"0", "1", "2", "3"}
    assert "lm.output_layer.weight" not in names, "tied"
