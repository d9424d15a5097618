"""ClapCap's file becomes a checkpoint that stages take their encoder from."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_af.audio.encoder import encoder_of
from megatron_af.config import Config
from megatron_af.convert.clapcap import clapcap_weights, load_clapcap
from megatron_af.model import Vocabulary, build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.checkpoint import load_parts
from megatron_af.train.conversion import convert
from tests import tiny
from tests.distributed import run_distributed
from tests.text.toy_tokenizer import toy_base


def small(folder: Path) -> Config:
    """Of ClapCap's kind."""
    toy_base().save(str(folder / "tokenizer.json"))
    config = tiny.config()
    encoder = dataclasses.replace(config.model.encoder, vector="residual", vector_dim=32, classes=5)
    lm = dataclasses.replace(config.model.lm, vocab=257)
    data = dataclasses.replace(config.data, tokenizer=str(folder / "tokenizer.json"))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, encoder=encoder, lm=lm), data=data)


def theirs(config: Config) -> dict[str, Tensor]:
    """A state of such an encoder under msclap's names, with its statistics and without the mel filters."""
    encoder = encoder_of(config.model.encoder).build(config.model.front_end)
    names = {
        name: f"clap.{name}" if name.startswith("projection.") else f"clap.base.htsat.{name}"
        for name in encoder.state_dict()
        if not name.startswith("logmel_extractor.")
    }
    state = encoder.state_dict()
    return {their: torch.randn_like(state[name].float()).to(state[name].dtype) for name, their in names.items()}


def converted(rank: int, world_size: int, config: Config, file: Path, target: Path) -> dict[str, Tensor]:
    written = convert(config, file, target)
    groups = process_groups.initialize(config.parallel, config.seed)
    tokenizer = Tokenizer.load(config.data.tokenizer)
    vocabulary = Vocabulary(first_added_id=tokenizer.first_added_id, num_added=tokenizer.num_added)
    model = build(config, vocabulary, current_device())
    load_parts(model, groups, written, ("encoder",))
    return dict(model.front.get_submodule("encoder").state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("held", [lambda weights: {"model": weights, "epoch": 3}, dict], ids=["model", "bare"])
def test_the_file_becomes_a_checkpoint_with_an_encoder(tmp_path: Path, held: Any) -> None:
    config = small(tmp_path)
    weights = theirs(config)
    torch.save(held(weights), tmp_path / "clapcap.pth")
    (found,) = run_distributed(converted, 1, config, tmp_path / "clapcap.pth", tmp_path / "converted")
    for name, tensor in found.items():
        their = weights.get(f"clap.{name}" if name.startswith("projection.") else f"clap.base.htsat.{name}")
        assert torch.equal(tensor, their) if their is not None else name == "logmel_extractor.melW", name


def test_another_encoder_is_told_by_the_tensor(tmp_path: Path) -> None:
    config = small(tmp_path)
    weights = theirs(config)
    for changes, message in (
        ({"embed_dim": 8}, r"encoder\.\S+: expected a tensor of shape \(8, .* got one of \(16, "),
        ({"absolute_positions": True}, r"encoder\.absolute_pos_embed: expected .*, got none; set model\.front_end"),
    ):
        encoder = encoder_of(dataclasses.replace(config.model.encoder, **changes)).build(config.model.front_end)
        with pytest.raises(ValueError, match=message):
            load_clapcap(encoder, weights)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"expected ClapCap's weights, with names that begin with clap\.base\.htsat"):
        clapcap_weights(tmp_path / "other.pth")
