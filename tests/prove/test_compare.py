"""What differs is found and named: by its last bit where runs must be the same, and beyond rounding elsewhere."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch

from megatron_af.prove.compare import GRADIENTS, Agreement, agreements, relative_error
from megatron_af.prove.observe import Observation


def seen() -> Observation:
    return Observation(
        numbers={step: {"loss": 2.0 / step, "tokens": 30.0, "grad_norm": 1.5} for step in (1, 2)},
        samples={1: {0: ("a", "b")}, 2: {0: ("c", "d")}},
        gradients={"x": torch.tensor([1.0, -2.0]), "gate": torch.tensor([1e-5])},
        weights={"x": torch.ones(2, 2), "gate": torch.ones(1)},
    )


def broken(change: Callable[[Observation], Any], exact: bool = False) -> list[Agreement]:
    other = deepcopy(seen())
    change(other)
    return [found for found in agreements(seen(), other, exact=exact) if not found.holds]


def test_a_run_equals_itself() -> None:
    assert broken(lambda run: None, exact=True) == []
    kinds = [found.what for found in agreements(seen(), seen())]
    assert kinds == ["loss and counts", "gradient's norm", "gradients", "weights", "order of the data"]
    assert [found.compared for found in agreements(seen(), seen())] == [4, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("change", "what", "worst"),
    [
        (lambda run: run.numbers[2].update(tokens=31.0), "loss and counts", "tokens, step 2"),
        (lambda run: run.numbers[1].update(grad_norm=1.501), "gradient's norm", "grad_norm, step 1"),
        (lambda run: run.numbers[1].pop("loss"), "loss and counts", "loss, step 1"),
        (lambda run: run.gradients["x"].mul_(1.001), "gradients", "x"),
        (lambda run: run.gradients.pop("gate"), "gradients", "gate"),
        (lambda run: run.weights["gate"].fill_(float("nan")), "weights", "gate"),
        (lambda run: run.weights.update(x=torch.ones(4)), "weights", "x"),
        (lambda run: run.samples[2].update({0: ("d", "c")}), "order of the data", "step 2"),
    ],
)
def test_what_differs_is_named(change: Callable[[Observation], Any], what: str, worst: str) -> None:
    (found,) = broken(change)
    assert (found.what, found.worst) == (what, worst)


def test_to_the_last_bit() -> None:
    def nudge(run: Observation) -> None:
        run.weights["x"][0, 0] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))

    (found,) = broken(nudge, exact=True)
    assert found.worst == "x" and broken(nudge) == []


def test_a_gradient_that_nearly_cancels_out_has_the_rounding_of_its_terms() -> None:
    assert broken(lambda run: run.gradients["gate"].add_(1e-9)) == []
    (found,) = broken(lambda run: run.gradients["gate"].mul_(0.5))
    assert found.worst == "gate" and found.error > GRADIENTS


def test_errors_are_relative_to_the_largest_value() -> None:
    assert relative_error(torch.tensor([1.0, 100.0]), torch.tensor([2.0, 100.0])) == pytest.approx(0.01)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_error(torch.zeros(2), torch.zeros(3)) == float("inf")
