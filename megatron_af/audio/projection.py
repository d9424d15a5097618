"""From a tower's output to the joint space of audio and text.

    project = projection("mlp", 768, 512)
    vector_TJ = project(mean_TH)

Sources: ``mlp``: LAION-CLAP and AF-CLAP (``clap_module/model.py``); ``residual``: Microsoft's CLAP and ClapCap
(``msclap/models/clap.py``). Parameter names are theirs. Shapes: T vectors, H hidden, J joint dim.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualProjection(nn.Module):
    """Two linear layers, the second on top of the first one's output, and a norm; dropout in training only."""

    def __init__(self, width: int, joint_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, joint_dim, bias=False)
        self.linear2 = nn.Linear(joint_dim, joint_dim, bias=False)
        self.layer_norm = nn.LayerNorm(joint_dim)
        self.drop = nn.Dropout(0.5)

    def forward(self, mean_TH: Tensor) -> Tensor:
        first_TJ = self.linear1(mean_TH)
        out: Tensor = self.layer_norm(first_TJ + self.drop(self.linear2(F.gelu(first_TJ))))
        return out


def projection(kind: Literal["mlp", "residual"], width: int, joint_dim: int) -> nn.Module:
    if kind == "residual":
        return ResidualProjection(width, joint_dim)
    return nn.Sequential(nn.Linear(width, joint_dim), nn.ReLU(), nn.Linear(joint_dim, joint_dim))
