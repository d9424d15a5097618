"""Weights under which every gradient is alive: a function of a parameter's canonical name, the same in any layout.

    load_global(model.chunks, model.front, live)

Fresh weights would not do: gates begin at zero and adapters add nothing, so that what lies behind them has no
gradient, and agreement about it would say nothing.
"""

import zlib

import torch


def live(name: str, shape: torch.Size) -> torch.Tensor:
    """Weight of a parameter, float32."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    noise = torch.randn(shape, generator=generator)
    if "gate_" in name:
        return 0.5 + 0.1 * noise
    if len(shape) > 1:
        return noise / (noise[0].numel() ** 0.5)
    return (1 + 0.1 * noise) if "norm" in name and name.endswith("weight") else 0.05 * noise
