"""Published encoders become checkpoints that stages take their encoder from, every tensor accounted for."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_af.audio.encoder import encoder_of
from megatron_af.config import Config
from megatron_af.convert.encoders import EncoderFile
from megatron_af.convert.keys import pickled_weights
from megatron_af.model import Vocabulary, build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.checkpoint_reading import load_parts
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
        ({"embed_dim": 8}, r"encoder\.\S+: expected shape \(8, .* weights has \(16, .*; check model\.front_end"),
        ({"absolute_positions": True}, r"1 tensors are missing: \S+absolute_pos_embed; check model\.front_end"),
        ({"depths": (1,), "heads": (2,)}, r"\d+ tensors are missing|belong to no part of this model"),
    ):
        encoder = encoder_of(dataclasses.replace(config.model.encoder, **changes)).build(config.model.front_end)
        with pytest.raises(ValueError, match=message):
            EncoderFile(weights).load(encoder)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: expected the weights of ClapCap, LAION-CLAP or .* got a"):
        EncoderFile(pickled_weights(tmp_path / "other.pth"), "other.pth")


@pytest.mark.parametrize(
    ("vector", "extra"), [("mlp", {}), ("", {"audio_projection.0.weight": 1})], ids=["laion-clap", "af-clap"]
)
def test_the_contrastive_files_are_read_without_their_text_side(
    tmp_path: Path, vector: Any, extra: dict[str, int]
) -> None:
    config = small(tmp_path).model
    encoder = encoder_of(dataclasses.replace(config.encoder, vector=vector)).build(config.front_end)

    def theirs_of(name: str) -> str:
        return f"audio_{name}" if name.startswith("projection.") else f"audio_branch.{name}"

    state = encoder.state_dict()
    weights = {theirs_of(name): torch.randn_like(x.float()).to(x.dtype) for name, x in state.items()}
    others = ("text_branch.encoder.0.w", "text_projection.0.weight", "audio_transform.sequential.0.weight",
              "logit_scale_a", "audio_branch.layers.0.blocks.1.attn_mask",
              "audio_branch.layers.0.blocks.0.attn.relative_position_index", *extra)  # fmt: skip
    held = {f"module.{name}": tensor for name, tensor in (weights | dict.fromkeys(others, torch.zeros(1))).items()}
    torch.save({"epoch": 16, "state_dict": held, "optimizer": {"step": 3}}, tmp_path / "epoch_16.pt")
    report = EncoderFile(pickled_weights(tmp_path / "epoch_16.pt")).load(encoder)
    assert set(report.used) == set(weights) and set(report.ignored) == set(others)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, weights[theirs_of(name)]), name
