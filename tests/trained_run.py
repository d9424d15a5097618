"""A run as training leaves it, without training: an answering stage and an AF-CLAP stage, with checkpoints.

    config = trained_run(tmp_path)          # stages "clap" and "stage" below runs/tiny
    other = trained_run(tmp_path, "other", seed=1)
    older = trained_run(tmp_path, style="af1")      # OPT, one vector a window, overlapping windows, AF1's templates
"""

import dataclasses
from pathlib import Path
from typing import Literal

import tokenizers
import torch
from tokenizers.models import WordLevel

from megatron_af.config import Config, DataConfig, LoRAConfig, ModelConfig, StageConfig
from megatron_af.config.loading import to_yaml
from megatron_af.model import Vocabulary, build
from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.runs.paths import Resume
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.checkpoint import Checkpoints
from megatron_af.train.objectives.answer import Answer
from megatron_af.train.objectives.contrastive_learner import build_clap
from tests import contrastive_run, tiny
from tests.distributed import run_distributed


def trained_run(
    folder: Path,
    name: str = "tiny",
    seed: int = 0,
    lora: LoRAConfig | None = None,
    style: Literal["af1", "af2"] = "af2",
) -> Config:
    """Its configuration; ``stage`` answers, ``clap`` embeds, words are ``w0`` to ``w88``; each seed has its weights."""
    words = {f"w{i}": i for i in range(89)} | {"<|endoftext|>": 89}
    if style == "af1":
        words = {"w0": 0, "<pad>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 89)} | {"Answer": 89}
    base = tokenizers.Tokenizer(WordLevel(words, unk_token="w0"))
    base.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    base.save(str(folder / "tokenizer.json"))
    data = DataConfig(root=str(folder), tokenizer=str(folder / "tokenizer.json"), workers=1, text_style=style)
    small = tiny.config(lora=lora)
    if style == "af1":
        small = dataclasses.replace(small, model=_af1(small.model))
    config = dataclasses.replace(
        small,
        name=name,
        seed=seed,
        output=str(folder / "runs"),
        data=data,
        # Half of the encoder's branches are dropped where somebody forgets that nothing is learnt any more.
        model=dataclasses.replace(
            small.model, encoder=dataclasses.replace(small.model.encoder, drop_path=0.5), clap=contrastive_run.CLAP
        ),
        curriculum={
            "clap": StageConfig(objective="contrastive", blend={}, max_windows=2, trainable=("encoder.*", "clap.*")),
            **small.curriculum,
        },
    )
    run_distributed(_save, 1, config, timeout=120)
    return config


def _af1(model: ModelConfig) -> ModelConfig:
    return dataclasses.replace(
        model,
        front_end=dataclasses.replace(model.front_end, window_seconds=2.0, overlap_seconds=0.5),
        encoder=dataclasses.replace(model.encoder, vector="residual", vector_dim=24),
        transform=dataclasses.replace(model.transform, positions="sinusoidal"),
        lm=dataclasses.replace(model.lm, family="opt", kv_heads=4, norm_eps=1e-5),
    )


def _vocabulary(config: Config) -> Vocabulary:
    tokenizer = Tokenizer.load(config.data.tokenizer)
    return Vocabulary(first_added_id=tokenizer.first_added_id, num_added=tokenizer.num_added)


def _save(rank: int, world_size: int, config: Config) -> None:
    groups = process_groups.initialize(config.parallel, config.seed)
    model = build(config, _vocabulary(config), current_device())
    tiny.fill(model)
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            parameter += 0.02 * config.seed * torch.randn(parameter.shape, generator=generator)
    clap = build_clap(config, Tokenizer.load(config.data.tokenizer), current_device())
    for stage, trained, parts in (
        ("stage", model, Answer().parts_of(config.curriculum["stage"])),
        ("clap", clap, ("encoder", "clap")),
    ):
        at = dataclasses.replace(config, stage=stage)
        resume = Resume(stage=stage, step=1, skipped=0, samples=1, world_size=1)
        checkpoints = Checkpoints(config.stage_folder(stage) / "checkpoints", keep=1)
        checkpoints.save(trained, None, groups, resume, {}, parts, to_yaml(at))
