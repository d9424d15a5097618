"""Ways that differ are told of, and where a unit switches is no difference."""

import pytest
import torch
import torch.nn.functional as F

from megatron_af.bench.same import Computed, check_same, without_corners


def test_ways_that_differ_are_not_compared() -> None:
    one = Computed(1.0, {"w": torch.ones(2)})
    check_same(one, Computed(1.000001, {"w": torch.ones(2)}))
    with pytest.raises(RuntimeError, match="losses"):
        check_same(one, Computed(1.1, {}))
    with pytest.raises(RuntimeError, match="w gradients"):
        check_same(one, Computed(1.0, {"w": torch.tensor([1.0, 1.1])}))


def test_no_unit_switches_without_corners() -> None:
    x = torch.linspace(-1, 1, 5)
    with without_corners():
        assert torch.equal(F.relu(x), F.softplus(x))
    assert torch.equal(F.relu(x), x.clamp(min=0))
