"""Whether two ways compute the same, before what they cost is compared.

    with without_corners():
        check_same(ours, theirs)        # Computed: a loss, and the gradients of all that learns
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch.nn.functional as F
from torch import Tensor

LOSS, GRADIENT = 1e-5, 1e-4
ROUNDED_LOSS, ROUNDED_GRADIENT = 2e-2, 1e-1
"""Relative differences up to which two ways compute the same, in float32 and in bf16."""

CANCELLED = 1e-3
"""No gradient is further from float64 than that, however its sum cancels."""


@dataclass(frozen=True)
class Computed:
    loss: float
    gradients: dict[str, Tensor]


def check_same(
    one: Computed,
    other: Computed,
    loss: float = LOSS,
    gradient: float = GRADIENT,
    plain: Computed | None = None,
) -> None:
    """
    Args:
        other: where ``plain`` is given, in float64.
        plain: the same in plain float32: where the sum of a gradient cancels, as of a gate, which is one number, even
            that is further from float64 than ``gradient``, and a way may be twice as far, up to ``CANCELLED``.

    Raises:
        RuntimeError: they differ by more than the rounding of their sums.
    """
    if abs(one.loss - other.loss) > loss * abs(other.loss):
        raise RuntimeError(f"two ways gave losses of {one.loss} and {other.loss}: their costs cannot be compared")
    for name, wanted in other.gradients.items():
        error = _error(one.gradients[name], wanted)
        rounding = 2 * _error(plain.gradients[name], wanted) if plain else 0.0
        if error > max(gradient, min(rounding, CANCELLED)):
            raise RuntimeError(f"two ways gave {name} gradients that differ by {error:.1e} of the largest")


def _error(gradient: Tensor, wanted: Tensor) -> float:
    return float((gradient - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


@contextmanager
def without_corners() -> Iterator[None]:
    """The same model with a smooth function in the place of the transformation layers' ReLU. Of its millions of inputs
    some lie so near to zero that rounding decides whether they have a gradient at all."""
    with patch.object(F, "relu", F.softplus):
        yield
