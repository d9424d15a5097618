"""What a product costs follows from who trains below and above it."""

import pytest

from megatron_af.flops import Amounts, Tally

STEP = Amounts(text=10)


@pytest.mark.parametrize(
    ("trains", "flows_in", "passes"),
    [(False, False, 1), (False, True, 2), (True, False, 2), (True, True, 3)],
)
def test_a_frozen_weight_has_no_gradient_and_below_the_first_that_trains_there_is_none(
    trains: bool, flows_in: bool, passes: int
) -> None:
    tally = Tally(lambda name: trains)
    flows_out = tally.linear(flows_in, "a", 3 * 5, "text")
    assert tally.of(STEP) == 2 * 3 * 5 * 10 * passes
    assert flows_out == (trains or flows_in)


def test_a_bias_wants_a_gradient_above_it_only() -> None:
    tally = Tally(lambda name: name == "a.bias")
    x = tally.linear(False, "a", 1, "text", bias=True)
    assert tally.of(STEP) == 2 * 10
    tally.linear(x, "b", 1, "text")
    assert tally.of(STEP) == 2 * 10 + 4 * 10


@pytest.mark.parametrize(
    ("query", "key", "value", "bias", "products"),
    [
        (False, False, False, False, 2),
        (True, True, True, False, 6),
        (True, False, False, False, 4),
        (False, False, True, False, 3),
        (False, False, False, True, 3),
    ],
)
def test_attention_runs_the_gradients_that_are_wanted(
    query: bool, key: bool, value: bool, bias: bool, products: int
) -> None:
    tally = Tally(lambda name: False)
    tally.attention(query, key, value, 8, "text", bias=bias)
    assert tally.of(STEP) == 2 * 8 * 10 * products
