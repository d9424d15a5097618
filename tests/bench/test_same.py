"""Ways that differ are told of, and where a unit switches is no difference."""

import pytest
import torch
import torch.nn.functional as F

from megatron_af.bench.same import PARTS, Computed, check_alike, check_same, without_corners


def test_ways_that_differ_are_not_compared() -> None:
    one = Computed(1.0, {"w": torch.ones(2)})
    check_same(one, Computed(1.000001, {"w": torch.ones(2)}))
    with pytest.raises(RuntimeError, match="losses"):
        check_same(one, Computed(1.1, {}))
    with pytest.raises(RuntimeError, match="w gradients"):
        check_same(one, Computed(1.0, {"w": torch.tensor([1.0, 1.1])}))


def test_where_plain_float32_is_far_from_float64_a_way_may_be_twice_as_far() -> None:
    exact, plain = ({"gate": torch.tensor([1.0 + far]), "w": torch.ones(2)} for far in (0.0, 2e-4))

    def check(far: float, name: str) -> None:
        found = {"gate": torch.tensor([1.0]), "w": torch.ones(2)}
        found[name] = found[name] + far
        check_same(Computed(1.0, found), Computed(1.0, exact), plain=Computed(1.0, plain))

    check(3.9e-4, "gate")
    with pytest.raises(RuntimeError, match="gate gradients"):
        check(4.1e-4, "gate")
    with pytest.raises(RuntimeError, match="w gradients"):
        check(1.1e-4, "w")


def test_a_plain_way_that_is_wrong_excuses_nothing() -> None:
    exact, wrong = Computed(1.0, {"w": torch.ones(2)}), Computed(1.0, {"w": torch.tensor([1.0, 1.5])})
    with pytest.raises(RuntimeError, match="w gradients"):
        check_same(wrong, exact, plain=wrong)


def test_no_unit_switches_without_corners() -> None:
    x = torch.linspace(-1, 1, 5)
    with without_corners():
        assert torch.equal(F.relu(x), F.softplus(x))
    assert torch.equal(F.relu(x), x.clamp(min=0))


def test_in_bf16_the_gradients_of_each_part_point_the_same_way() -> None:
    def computed(loss: float, turned: str = "") -> Computed:
        return Computed(loss, {f"{part}w": torch.tensor([1.0, 0.2 * (part == turned), 1e-3]) for part in PARTS})

    loss, cosine = check_alike(computed(1.01), computed(1.0))
    assert loss == pytest.approx(0.01) and cosine == pytest.approx(1.0)
    with pytest.raises(RuntimeError, match=r"off by 3\.0e-02"):
        check_alike(computed(1.03), computed(1.0))
    for part in PARTS:
        with pytest.raises(RuntimeError, match="cosines of"):
            check_alike(computed(1.0, part), computed(1.0))
    with pytest.raises(RuntimeError, match="in bf16"):
        check_alike(computed(float("nan")), computed(1.0))
