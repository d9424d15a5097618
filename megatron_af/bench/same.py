"""Whether two ways compute the same, before what they cost is compared.

    with without_corners():
        check_same(ours, theirs)        # Computed: a loss, and the gradients of all that learns
        check_alike(ours, theirs)       # where one of them was computed in bf16
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

LOSS, GRADIENT = 1e-5, 1e-4
"""Relative differences up to which two ways compute the same in float32."""
ROUNDED_LOSS, ROUNDED_COSINE = 2e-2, 0.99
"""In bf16, which has eight bits: of the loss, and the least cosine between the gradients of a part of the model. Single
numbers say nothing there: of the sums that biases of norms learn by, rounding alone is up to two thirds of the largest
(the public code's way against float64, CPU, width 512)."""
PARTS = ("transform.", "added_rows", "lm.")

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


def check_alike(one: Computed, other: Computed) -> tuple[float, float]:
    """Whether a way in bf16 computes what another one does.

    Returns:
        The relative difference of the losses, and the least cosine between the gradients of a part.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    loss = abs(one.loss - other.loss) / abs(other.loss)
    cosines = {part: _cosine(one, other, part) for part in PARTS}
    if not (loss <= ROUNDED_LOSS and all(cosine >= ROUNDED_COSINE for cosine in cosines.values())):
        raise RuntimeError(f"in bf16 the loss is off by {loss:.1e}, and gradients have cosines of {cosines}")
    return loss, min(cosines.values())


def _cosine(one: Computed, other: Computed, part: str) -> float:
    names = [name for name in other.gradients if name.startswith(part)]
    joined = [torch.cat([found.gradients[name].flatten().double() for name in names]) for found in (one, other)]
    return float(F.cosine_similarity(joined[0], joined[1], dim=0))


def _error(gradient: Tensor, wanted: Tensor) -> float:
    return float((gradient - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


@contextmanager
def without_corners() -> Iterator[None]:
    """The same model with a smooth function in the place of the transformation layers' ReLU. Of its millions of inputs
    some lie so near to zero that rounding decides whether they have a gradient at all."""
    with patch.object(F, "relu", F.softplus):
        yield
