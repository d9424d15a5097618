"""A second family of language models is one file: this one. It converts, trains, is counted and measured by the tools.

Other than Qwen2's: LayerNorm with biases, a plain GELU unit, no bias at query, key and value, other weight names.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from megatron_af.config.loading import load_config
from megatron_af.decoder.family import LanguageFamily
from megatron_af.flops import Amounts, Tally
from tests.train import toy_run as tool
from tests.train.toy_run import newest, tool_run

pytestmark = pytest.mark.slow

KIND = f"{__name__}:Toy"


class Toy(LanguageFamily):
    model_type = "toy"
    outside_layers: ClassVar = {
        "embedding.word_embeddings.weight": "words.weight",
        "decoder.final_layernorm.weight": "last_norm.weight",
        "decoder.final_layernorm.bias": "last_norm.bias",
        "output_layer.weight": "head.weight",
    }
    layer_prefix = "blocks"
    inside_layers: ClassVar = {
        "input_layernorm.weight": ("norm1.weight",),
        "input_layernorm.bias": ("norm1.bias",),
        "self_attention.linear_qkv.weight": ("q.weight", "k.weight", "v.weight"),
        "self_attention.linear_proj.weight": ("o.weight",),
        "pre_mlp_layernorm.weight": ("norm2.weight",),
        "pre_mlp_layernorm.bias": ("norm2.bias",),
        "mlp.linear_fc1.weight": ("up.weight",),
        "mlp.linear_fc2.weight": ("down.weight",),
    }

    def problems(self) -> Iterator[str]:
        if self.config.layers > 8:
            yield f"model.lm.layers = {self.config.layers}: a toy has at most 8; lower it"

    def core_settings(self) -> dict[str, Any]:
        import torch.nn.functional as F

        return {
            "normalization": "LayerNorm",
            "gated_linear_unit": False,
            "activation_func": F.gelu,
            "add_bias_linear": False,
            "add_qkv_bias": False,
        }

    def model_settings(self) -> dict[str, Any]:
        return {"position_embedding_type": "rope", "rotary_base": self.config.rope_base}

    def tally(self, tally: Tally, x: bool, at: str) -> bool:
        hidden, ffn = self.config.hidden, self.config.ffn
        key_width = hidden // self.config.heads * self.config.kv_heads
        y = tally.passes(x, f"{at}.input_layernorm.weight", f"{at}.input_layernorm.bias")
        y = tally.linear(y, f"{at}.self_attention.linear_qkv", hidden * (hidden + 2 * key_width), "text")
        y = tally.attention(y, y, y, hidden, "text_scores")
        x = tally.linear(y, f"{at}.self_attention.linear_proj", hidden**2, "text") or x
        y = tally.passes(x, f"{at}.pre_mlp_layernorm.weight", f"{at}.pre_mlp_layernorm.bias")
        y = tally.linear(y, f"{at}.mlp.linear_fc1", hidden * ffn, "text")
        return tally.linear(y, f"{at}.mlp.linear_fc2", hidden * ffn, "text") or x

    @classmethod
    def read_config(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return dict(values["sizes"])

    def write_config(self) -> dict[str, Any]:
        return {"model_type": self.model_type, "sizes": vars(self.config) | {"family": "toy"}}


run_folder = tool.run_folder
"""Recordings, a tokenizer and a YAML file whose language model is of Qwen2's family."""


def folder_of(lm: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The model as somebody else would publish it: a config and weights by its own names."""
    generator = torch.Generator().manual_seed(0)
    head = lm.hidden // lm.heads
    shapes = {
        "norm1.weight": (lm.hidden,),
        "norm1.bias": (lm.hidden,),
        "norm2.weight": (lm.hidden,),
        "norm2.bias": (lm.hidden,),
        "q.weight": (lm.hidden, lm.hidden),
        "k.weight": (head * lm.kv_heads, lm.hidden),
        "v.weight": (head * lm.kv_heads, lm.hidden),
        "o.weight": (lm.hidden, lm.hidden),
        "up.weight": (lm.ffn, lm.hidden),
        "down.weight": (lm.hidden, lm.ffn),
    }
    named = {f"blocks.{layer}.{name}": shape for layer in range(lm.layers) for name, shape in shapes.items()}
    named |= {"words.weight": (lm.vocab, lm.hidden), "last_norm.weight": (lm.hidden,), "last_norm.bias": (lm.hidden,)}
    named |= {} if lm.tied else {"head.weight": (lm.vocab, lm.hidden)}
    weights = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in named.items()}
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    sizes = {key: value for key, value in dataclasses.asdict(lm).items() if key != "family"}
    (folder / "config.json").write_text(json.dumps({"model_type": "toy", "sizes": sizes}))
    return weights


def test_the_tools_convert_train_and_measure_it(run_folder: Path) -> None:
    rows = (run_folder / "data/train.jsonl").read_text().splitlines(keepends=True)
    (run_folder / "data/heard.jsonl").write_text("".join(row for row in rows if json.loads(row)["clips"][:1]))
    top = run_folder / "tiny.yaml"
    top.write_text(top.read_text().replace("datasets:", "datasets:\n    heard: {manifest: heard.jsonl}"))
    changes = ["name=toy", f"model.lm.family={KIND}", "curriculum.align.steps=2", "curriculum.align.evaluation=[heard]"]
    weights = folder_of(load_config(top, changes).model.lm, run_folder / "published")
    convert = ["tools/convert_checkpoint.py", "--config", str(top), "--from", str(run_folder / "published")]
    tool_run(*convert, "--to", str(run_folder / "converted"), *changes)
    changes.append(f"curriculum.align.entry={{lm: {newest(run_folder)}}}")
    assert len(tool.losses(tool.train(run_folder, *changes))) == 2
    tool_run("tools/evaluate.py", "--config", str(top), *changes)
    assert json.loads((run_folder / "runs/toy/align/hearing.json").read_text())["heard"]["overall"]["n"] > 0
    assert weights["words.weight"].std() > 0


def test_its_own_rules_and_cost_count() -> None:
    from megatron_af.config.rules import model_rules
    from megatron_af.train.flops import answer_tally
    from tests import tiny

    run = tiny.config()
    lm = dataclasses.replace(run.model.lm, family=KIND)
    model = dataclasses.replace(run.model, lm=lm)
    assert not list(model_rules(model))
    large = dataclasses.replace(model, lm=dataclasses.replace(lm, layers=9))
    assert "model.lm.layers = 9: a toy has at most 8; lower it" in list(model_rules(large))
    frozen = dataclasses.replace(run.curriculum["stage"], trainable=("added_rows",))
    text = Amounts(text=1)
    saved = answer_tally(run.model, frozen).of(text) - answer_tally(model, frozen).of(text)
    assert saved == 2 * 2 * lm.layers * lm.hidden * lm.ffn, "no gate in its unit: forward and the input's gradient"
