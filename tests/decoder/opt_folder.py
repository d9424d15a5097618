"""A toy OPT in transformers, and as a folder."""

from pathlib import Path
from typing import Any

import torch

from megatron_af.config import LMConfig
from tests.decoder.toy import plain_rows, roughen, toy_config

SIZES: dict[str, Any] = {"family": "opt", "kv_heads": 4, "norm_eps": 1e-5}
"""Beside those of ``toy_config``."""
SPLIT = 7
"""Where the packed rows' second segment begins."""


def transformers_model(lm: LMConfig) -> Any:
    """Of these sizes, with random weights."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(3)
    return OPTForCausalLM(
        OPTConfig(
            hidden_size=lm.hidden,
            word_embed_proj_dim=lm.hidden,
            num_hidden_layers=lm.layers,
            num_attention_heads=lm.heads,
            ffn_dim=lm.ffn,
            vocab_size=lm.vocab,
            max_position_embeddings=lm.max_positions,
            init_std=0.2,
        )
    ).float()


def write_opt_folder(path: Path) -> Path:
    """A small random OPT in several safetensors files, with its logits for ``plain_rows()`` and ``packed_rows()``."""
    model, ids_BS = transformers_model(toy_config(lm=SIZES).model.lm), plain_rows().ids_BS
    roughen(model)
    with torch.no_grad():
        plain = model.eval()(input_ids=ids_BS).logits
        apart = [model(input_ids=part).logits for part in (ids_BS[:, :SPLIT], ids_BS[:, SPLIT:])]
    model.save_pretrained(path, max_shard_size="100KB")
    torch.save(plain, path / "logits.pt")
    torch.save(torch.cat(apart, 1), path / "packed_logits.pt")
    return path
