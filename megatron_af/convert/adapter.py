"""Adapters of the language model as a folder that peft loads onto the Hugging Face model which they were trained on.

    tensors = peft_tensors(model.chunks, config.model.lm)                    # (name, tensor) on rank 0
    write_adapter(folder, tensors, config.lora, config.model.lm, torch.bfloat16)

Where our linear is fused, peft has one adapter for each of its parts: all of them have our A, and each has its rows of
our B. Layout: ``adapter_config.json`` and ``adapter_model.safetensors`` of peft's ``LoraModel``.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from megatron_af.config import LMConfig, LoRAConfig
from megatron_af.convert.language import hugging_face_names, split_whole
from megatron_af.convert.shards import write_shards
from megatron_af.decoder.family import family_of
from megatron_af.decoder.lora import OWNER
from megatron_af.files import write
from megatron_af.parallel.global_state import whole_tensors

OURS = re.compile(r"(lm\.decoder\.layers\.\d+)\.lora\.(\w+)\.([ab])\.weight")


def peft_tensors(chunks: Iterable[nn.Module], lm: LMConfig) -> Iterator[tuple[str, Tensor]]:
    """All adapters under peft's names, on rank 0; a collective (`whole_tensors`)."""
    for name, whole in whole_tensors(chunks):
        if (found := OURS.fullmatch(name)) is None:
            continue
        layer, target, matrix = found.groups()
        linear = f"{layer}.{OWNER[target]}.{target}.weight"
        names = hugging_face_names(linear, family_of(lm))
        parts = [whole] * len(names) if matrix == "a" else split_whole(linear, whole, lm)
        for part_name, part in zip(names, parts, strict=True):
            yield f"base_model.model.{part_name.removesuffix('.weight')}.lora_{matrix.upper()}.weight", part


def write_adapter(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], lora: LoRAConfig, lm: LMConfig, dtype: torch.dtype
) -> None:
    """Write both files into a folder that is there."""
    write_shards(folder, ((name, tensor.to(dtype)) for name, tensor in tensors), sys.maxsize)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")  # never parted
    inside = family_of(lm).inside_layers
    linears = [part for target in lora.targets for part in inside[f"{OWNER[target]}.{target}.weight"]]
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": [part.removesuffix(".weight") for part in linears],
        "bias": "none",
        "base_model_name_or_path": None,  # whoever loads it says
        "inference_mode": True,
    }
    write(folder / "adapter_config.json", json.dumps(values, indent=2) + "\n")
