"""Activations that are computed again in the backward pass instead of being kept: once, however often it is asked for.

    y = recomputed(layers, x)           # inside of layers, another recomputed(...) is an ordinary call

A rank has thousands of windows in a step of long clips. Encoder and transformation layers take ``WINDOWS_AT_ONCE`` of
them in a call; of more than that only what goes in and what comes out is kept.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from torch.utils.checkpoint import checkpoint

WINDOWS_AT_ONCE = 64
"""Their tokens fill a GPU; HTSAT large keeps about a quarter of a GB for each while it learns in bf16."""

_within = ContextVar("_within", default=False)


def recomputed(function: Callable[..., Any], *inputs: Any) -> Any:
    """What ``function`` returns, keeping its inputs alone; random numbers are drawn the same both times."""
    if _within.get():
        return function(*inputs)

    def run(*again: Any) -> Any:
        outermost = _within.set(True)
        try:
            return function(*again)
        finally:
            _within.reset(outermost)

    return checkpoint(run, *inputs, use_reentrant=False)
