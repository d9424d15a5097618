"""Parity fixtures: outputs of the published code at weights that are a formula of each parameter's name.

    fixture = Fixture.load(path)
    weights = fixture.weights()          # released name -> tensor

The format is described in tests/fixtures/parity/README.md.
"""

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "fixtures/parity"


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    n = generator.standard_normal(shape, dtype=np.float32)
    if len(shape) >= 2:
        n /= np.float32(math.sqrt(math.prod(shape[1:])))
    elif name.endswith("_gate"):
        n *= np.float32(0.7)
    elif name.endswith("running_var"):
        n = np.float32(0.5) + abs(n)
    elif name.endswith("running_mean"):
        n *= np.float32(0.1)
    elif name.endswith("weight"):
        n = 1 + np.float32(0.1) * n
    else:
        n *= np.float32(0.05)
    return torch.from_numpy(n)


@dataclass(frozen=True, kw_only=True)
class Fixture:
    name: str
    info: dict[str, Any]
    arrays: dict[str, Tensor]

    @classmethod
    def load(cls, path: Path) -> "Fixture":
        with np.load(path) as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file.files}
        return cls(name=path.stem, info=json.loads(path.with_suffix(".json").read_text()), arrays=arrays)

    @property
    def kind(self) -> str:
        """``htsat``, ``clapcap``, ``af2`` or ``af1``, told by the content."""
        if "waveform" in self.arrays:
            return "clapcap" if "vector" in self.arrays else "htsat"
        is_af2 = any(name.startswith("audio_transformer_clap.") for name in self.info["parameters"])
        return "af2" if is_af2 else "af1"

    def weights(self) -> dict[str, Tensor]:
        return {name: weight(name, tuple(shape)) for name, shape in self.info["parameters"].items()}
