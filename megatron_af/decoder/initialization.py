"""Fresh weights that do not depend on the layout: every parameter is drawn under its canonical name.

Each rank draws the whole tensor from a generator seeded by (seed, name) and keeps its part, so that any
tensor- and pipeline-parallel layout starts from the same model.
"""

import math
import zlib
from collections.abc import Callable

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor, nn

from megatron_af.decoder.family import LanguageFamily
from megatron_af.parallel.global_state import Placement, fill, placements


def initialize(
    chunk: GPTModel, family: LanguageFamily, seed: int, wanted: Callable[[str], bool] = lambda name: True
) -> None:
    """Give weights of one model chunk their first value; parameters on the meta device have none.

    Args:
        wanted: by canonical name; what a checkpoint is about to fill need not be drawn (37 s for 3 billion) and is 0.
    """
    for placement, parameter in placements(chunk):
        if parameter.is_meta:
            continue
        if wanted(placement.name):
            fill(parameter, placement, placement.take(fresh(placement, family, seed)))
        else:
            nn.init.zeros_(parameter)


def fresh(placement: Placement, family: LanguageFamily, seed: int) -> Tensor:
    """The whole tensor of that name, float32.

    Norms and gates keep what makes a fresh block the identity. Matrices of the language model are normal, as wide as
    its family says. Matrices of the gated blocks are uniform in +-1/sqrt(fan-in), as ``nn.Linear`` draws them in the
    reference, and so are those of adapters behind the input; those in front of the output are zero.
    """
    name, shape = placement.name, placement.shape
    if "norm" in name and name.endswith(".weight"):
        return torch.ones(shape)
    if name.endswith(".bias") or name.rsplit(".", 1)[-1].startswith("gate_"):
        return torch.zeros(shape)
    # Of a seed, a generator on the CPU takes the lower 32 bits: the hash of the name goes on from the run's seed.
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode(), seed))
    if ".lora." in name and name.endswith(".b.weight"):
        return torch.zeros(shape)
    if ".xattn." in name or ".lora." in name:
        bound = 1 / math.sqrt(shape[-1])
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return torch.empty(shape).normal_(0, family.initial_std(name), generator=generator)
