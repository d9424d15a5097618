"""Fresh weights that do not depend on the layout: every parameter is drawn under its canonical name.

Each rank draws the whole tensor from a generator seeded by (seed, name) and keeps its part, so that any
tensor- and pipeline-parallel layout starts from the same model.
"""

import math
import zlib

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from megatron_af.parallel.global_state import Placement, fill, placements


def initialize(chunk: GPTModel, seed: int) -> None:
    """Give every weight of one model chunk its first value; parameters on the meta device have none."""
    layers, hidden = chunk.config.num_layers, chunk.config.hidden_size
    for placement, parameter in placements(chunk):
        if not parameter.is_meta:
            fill(parameter, placement, placement.take(fresh(placement, layers, hidden, seed)))


def fresh(placement: Placement, layers: int, hidden: int, seed: int) -> Tensor:
    """The whole tensor of that name, float32.

    Norms and gates keep what makes a fresh block the identity. Matrices of the language model are normal with
    standard deviation sqrt(2 / (5 hidden)) (Nguyen and Salazar 2019), which is Qwen2.5's ``initializer_range`` of
    0.02 at its sizes; at that constant a narrow model's attention starts so flat that it does not learn to look
    anything up. Those that write into the residual stream are smaller by sqrt(2 layers) (GPT-2). Matrices of the gated
    blocks are uniform in +-1/sqrt(fan-in), as ``nn.Linear`` draws them in the reference.
    """
    name, shape = placement.name, placement.shape
    if "norm" in name and name.endswith(".weight"):
        return torch.ones(shape)
    if name.endswith(".bias") or name.rsplit(".", 1)[-1].startswith("gate_"):
        return torch.zeros(shape)
    # Of a seed, a generator on the CPU takes the lower 32 bits: the hash of the name goes on from the run's seed.
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode(), seed))
    if ".xattn." in name:
        bound = 1 / math.sqrt(shape[-1])
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    writes_residual = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
    std = math.sqrt(2 / (5 * hidden)) / (math.sqrt(2 * layers) if writes_residual else 1)
    return torch.empty(shape).normal_(0, std, generator=generator)
