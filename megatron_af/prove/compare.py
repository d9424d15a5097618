"""Is one run another one, within rounding? By what differs most, and its name.

for found in agreements(reference, seen):        # of a whole run, or of its resumed end
    found.holds, found.worst, found.error, found.bound
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from megatron_af.prove.observe import Observation

NUMBERS = 5e-6
"""Relative: losses, counts, learning rates."""
NORM = 2e-5
GRADIENTS = 5e-5
"""Of the largest value of a gradient, or of ``FLOOR`` of the largest of all where that is more."""
WEIGHTS = 1e-4
"""Of the largest value of a weight, behind all steps of a run."""
FLOOR = 1e-2
"""A gradient whose terms nearly cancel out has the rounding of its terms, not of itself."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far one kind of thing is the same."""

    what: str
    compared: int
    """Numbers, tensors or steps."""
    error: float
    """Relative, of the worst one; infinite where something is missing or not finite."""
    bound: float
    worst: str
    """Its name."""

    @property
    def holds(self) -> bool:
        return self.error <= self.bound


def agreements(reference: Observation, seen: Observation, *, exact: bool = False) -> Iterator[Agreement]:
    """Compare the steps that ``seen`` has, and what it kept of gradients and weights.

    Args:
        exact: to the last bit: a run with itself, resumed.
    """
    of_steps = {step: reference.numbers.get(step, {}) for step in seen.numbers}
    for what, bound, wanted in (("loss and counts", NUMBERS, False), ("gradient's norm", NORM, True)):
        got, expected = (
            {
                f"{name}, step {step}": torch.tensor(value, dtype=torch.float64)
                for step, numbers in run.items()
                for name, value in numbers.items()
                if (name == "grad_norm") == wanted
            }
            for run in (seen.numbers, of_steps)
        )
        yield _agreement(what, got, expected, 0.0 if exact else bound)
    if seen.gradients:
        scale = max((float(x.abs().max()) for x in reference.gradients.values()), default=0.0)
        yield _agreement("gradients", seen.gradients, reference.gradients, 0.0 if exact else GRADIENTS, FLOOR * scale)
    yield _agreement("weights", seen.weights, reference.weights, 0.0 if exact else WEIGHTS)
    yield _order(reference, seen)


def _agreement(
    what: str, got: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], bound: float, floor: float = 0.0
) -> Agreement:
    errors = {name: float("inf") for name in got.keys() ^ expected.keys()}
    errors |= {name: relative_error(got[name], expected[name], floor) for name in got.keys() & expected.keys()}
    worst = max(sorted(errors), key=errors.__getitem__, default="")
    return Agreement(what=what, compared=len(errors), error=errors.get(worst, 0.0), bound=bound, worst=worst)


def relative_error(got: torch.Tensor, expected: torch.Tensor, floor: float = 0.0) -> float:
    """Largest difference by the largest value; infinite where one is not finite or has another shape."""
    if got.shape != expected.shape or not (torch.isfinite(got).all() and torch.isfinite(expected).all()):
        return float("inf")
    difference = float((got.double() - expected.double()).abs().max()) if got.numel() else 0.0
    return difference / max(float(expected.double().abs().max()), floor, 1e-12) if difference else 0.0


def _order(reference: Observation, seen: Observation) -> Agreement:
    wrong = [step for step in seen.samples if seen.order(step) != reference.order(step)]
    return Agreement(
        what="order of the data",
        compared=len(seen.samples),
        error=float(len(wrong)),
        bound=0.0,
        worst=f"step {wrong[0]}" if wrong else "",
    )
