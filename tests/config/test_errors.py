"""How a message helps: divisors, of sizes and of numbers that are none."""

import pytest

from megatron_af.config.errors import divides, divisors


@pytest.mark.parametrize("value", [1, 2, 36, 97, 1001, 12_288, 151_936])
def test_divisors_are_all_there_and_in_order(value: int) -> None:
    assert divisors(value) == [d for d in range(1, value + 1) if value % d == 0]


@pytest.mark.parametrize("value", [2**63, 10**30, 2**61 - 1])
def test_no_number_keeps_a_message_waiting(value: int) -> None:
    """As a stranger's ``config.json`` may hold one; a search up to it would take centuries."""
    (problem,) = divides("heads", 7, "hidden", value)
    assert f"heads = 7 does not divide hidden = {value}: set heads to one of 1, " in problem
