"""Audio Flamingo 2's released folder, made of a parity fixture."""

import json

import pytest
import torch
from safetensors.torch import save_file

from megatron_af.audio.htsat import HTSAT
from megatron_af.convert.released import (
    aliases,
)
from tests.parity import FOLDER, Fixture
from tests.parity_config import fixture_config

FIXTURE = Fixture.load(FOLDER / "af2_tiny.npz")


@pytest.fixture
def folder(tmp_path):
    """A released folder in two chunks: one with the canonical names, one with aliases only, and an encoder."""
    config, _ = fixture_config(FIXTURE)
    weights = FIXTURE.weights()
    gated = {aliases(n)[0]: weights.pop(n) for n in list(weights) if ".gated_cross_attn_layer_sound." in n}
    torch.manual_seed(5)
    encoder = HTSAT(config.model.front_end, config.model.encoder).state_dict()
    gated |= {f"clap.afclap.{name}": tensor for name, tensor in encoder.items()}
    save_file({n: t.contiguous() for n, t in weights.items()}, tmp_path / "model_chunk_0.safetensors")
    save_file({n: t.contiguous() for n, t in gated.items()}, tmp_path / "model_chunk_1.safetensors")
    (tmp_path / "metadata.json").write_text(json.dumps({"model_chunk_0": {}, "model_chunk_1": {}}))
    return tmp_path
