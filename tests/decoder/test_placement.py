"""Layers are cut where the dearest chunk is cheapest."""

import dataclasses

import pytest

from megatron_af.config.loading import load_config
from megatron_af.decoder.placement import costs, cut, even, held, placement
from tests import tiny


@pytest.mark.parametrize(
    ("layers", "head", "chunks", "counts"),
    [
        ([1.0] * 8, 0.0, 4, [2, 2, 2, 2]),
        ([1.0] * 9, 0.0, 4, [3, 2, 2, 2]),
        ([1.0] * 8, 1.0, 2, [4, 4]),
        ([1.0] * 8, 2.0, 2, [5, 3]),
        ([1.0] * 12, 2.5, 4, [3, 4, 4, 1]),
        ([3.0, 1.0, 1.0, 1.0], 0.0, 2, [1, 3]),
        ([1.0] * 4, 9.0, 4, [1, 1, 1, 1]),
    ],
)
def test_the_dearest_chunk_is_as_cheap_as_can_be(
    layers: list[float], head: float, chunks: int, counts: list[int]
) -> None:
    found = cut(layers, head, chunks)
    assert sorted(found) == sorted(counts) and found[-1] == counts[-1]
    assert sum(found) == len(layers)


def test_an_even_split_stays_where_another_gains_nothing() -> None:
    assert cut([1.0] * 100, 0.5, 2) == even(100, 2)


def test_chunks_hold_layers_in_order_and_the_ends_know_that_they_are() -> None:
    chunks = held([2, 1, 3])
    assert [list(chunk.layers) for chunk in chunks] == [[0, 1], [2], [3, 4, 5]]
    assert [chunk.first for chunk in chunks] == [True, False, False]
    assert [chunk.last for chunk in chunks] == [False, False, True]


def test_a_layer_with_a_gated_block_costs_more_and_what_is_frozen_less() -> None:
    layers, head = costs(tiny.config(interval=2))
    assert layers[1] > layers[0] == layers[2] and head > 0
    frozen, _ = costs(tiny.config(("lm.*.xattn.*",), interval=2))
    assert frozen[0] < layers[0]


def test_a_large_table_takes_layers_from_the_last_stage() -> None:
    config = load_config("configs/af2_0.5b.yaml", ["stage=pretrain", "parallel.pipeline=4"])
    counts = [len(chunk.layers) for chunk in placement(config)]
    assert sum(counts) == 24 and counts[-1] < 6 and max(counts) <= 7
    small = dataclasses.replace(config.model.lm, vocab=1000)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, lm=small))
    assert [len(chunk.layers) for chunk in placement(config)] == [6, 6, 6, 6]
