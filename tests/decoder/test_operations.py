"""The decoder's products by hand, at sizes where each part of the sum can be seen."""

import dataclasses

import pytest

from megatron_af.decoder.operations import tally_decoder
from megatron_af.flops import Amounts, Tally
from tests import tiny

MODEL = tiny.config().model
LM, CROSS = MODEL.lm, MODEL.cross_attention
INNER = CROSS.heads * CROSS.head_dim
BLOCKS = LM.layers // CROSS.interval


def forward(amounts: Amounts, *, blocks: bool = True, interval: int = CROSS.interval) -> float:
    """Operations with everything frozen: one pass."""
    model = dataclasses.replace(MODEL, cross_attention=dataclasses.replace(CROSS, interval=interval))
    tally = Tally(lambda name: False)
    tally_decoder(tally, model, False, blocks=blocks)
    return tally.of(amounts)


def test_layers_cost_by_text_positions() -> None:
    keys = LM.hidden // LM.heads * LM.kv_heads
    layer = LM.hidden * (LM.hidden + 2 * keys) + LM.hidden**2 + 3 * LM.hidden * LM.ffn
    assert forward(Amounts(text=7), blocks=False) == 2 * 7 * LM.layers * layer
    assert forward(Amounts(text_scores=5), blocks=False) == 2 * 2 * 5 * LM.layers * LM.hidden


def test_the_output_layer_costs_by_supervised_tokens() -> None:
    assert forward(Amounts(supervised=3)) == 2 * 3 * LM.hidden * LM.vocab


def test_blocks_cost_by_text_by_keys_and_by_pairs_of_them() -> None:
    text = forward(Amounts(text=7)) - forward(Amounts(text=7), blocks=False)
    assert text == 2 * 7 * BLOCKS * (2 * LM.hidden * INNER + 2 * CROSS.ffn_multiplier * LM.hidden**2)
    assert forward(Amounts(audio_scores=11)) == 2 * 2 * 11 * BLOCKS * INNER
    # megatron-core's linear makes its input's gradient whether it is wanted or not
    key_values = forward(Amounts(keys=13))
    assert key_values in [2 * 13 * BLOCKS * 2 * MODEL.encoder.feature_dim * INNER * passes for passes in (1, 2)]


@pytest.mark.parametrize("interval", [1, LM.layers])
def test_a_block_stands_before_every_nth_layer(interval: int) -> None:
    pairs = forward(Amounts(audio_scores=1), interval=interval)
    assert pairs == 2 * 2 * (LM.layers // interval) * INNER
    assert forward(Amounts(audio_scores=1), interval=interval, blocks=False) == 0


def test_what_trains_at_the_bottom_costs_on_the_way_down() -> None:
    below, top = Tally(lambda name: name == "added_rows"), Tally(lambda name: "final_layernorm" in name)
    for tally in (below, top):
        tally_decoder(tally, MODEL, False)
    assert top.of(Amounts(text=1)) == forward(Amounts(text=1)), "nothing flows below the first that trains"
    assert below.of(Amounts(text=1)) == 2 * forward(Amounts(text=1))


def test_what_a_family_has_outside_its_layers_counts() -> None:
    """A bias of the last norm wants the output layer's gradient; a table of positions that of all layers."""

    def cost(family: str, trains: str, amounts: Amounts) -> float:
        lm = dataclasses.replace(LM, family=family, kv_heads=LM.heads)
        tally = Tally(lambda name: name == trains)
        tally_decoder(tally, dataclasses.replace(MODEL, lm=lm), False)
        return tally.of(amounts)

    for trains, amounts in (
        ("lm.decoder.final_layernorm.bias", Amounts(supervised=1)),
        ("lm.position_embeddings.weight", Amounts(text=1)),
    ):
        frozen = cost("opt", "", amounts)
        assert cost("opt", trains, amounts) == 2 * frozen
        assert cost("qwen2", trains, amounts) == cost("qwen2", "", amounts), "it has none"
