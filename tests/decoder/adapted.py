"""Decoders with adapters, of every family."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from megatron_af.config import LoRAConfig, StageConfig
from megatron_af.decoder.lm import AudioLM
from tests.decoder.toy import (
    ADDED,
    HIDDEN,
    build_chunks,
    mixed_rows,
    run_schedule,
    start_layout,
    toy_config,
)

LORA = LoRAConfig(rank=4, alpha=8.0)
FAMILIES = {"qwen2": {}, "opt": {"family": "opt", "kv_heads": 4}}


def build(lora: LoRAConfig | None, lm: dict[str, Any] | None = None, **layout: Any) -> list[AudioLM]:
    config = toy_config(lm=lm, **layout)
    config = dataclasses.replace(config, curriculum={"stage": StageConfig(lora=lora)}, stage="stage")
    start_layout(config.parallel)
    return build_chunks(config)


def logits(chunks: list[AudioLM]) -> list[Tensor]:
    rows_NH = torch.randn(ADDED, HIDDEN, generator=torch.Generator().manual_seed(3)) * 0.15
    found: list[Tensor] = run_schedule(chunks, [mixed_rows(0)], rows_NH, forward_only=True, forward=AudioLM.logits)
    return found
