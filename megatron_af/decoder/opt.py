"""OPT and OPT-IML: learnt positions from row 2 of their table on, LayerNorm in front, ReLU, biases everywhere.

Source: ``modeling_opt.py`` of transformers, and the ``config.json`` files of the published models. The 350M model,
which normalises behind its layers and embeds in another width, is not computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from megatron_af.decoder.family import LanguageFamily
from megatron_af.flops import Tally

COMPUTED = {
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "activation_function": "relu",
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
}
"""Keys of ``config.json`` and their only value that is computed, which is transformers' default."""
NORM_EPS = 1e-5
"""torch's default: no ``config.json`` states it."""


class OPT(LanguageFamily):
    model_type = "opt"
    position_offset = 2
    outside_layers: ClassVar = {
        "embedding.word_embeddings.weight": "model.decoder.embed_tokens.weight",
        "position_embeddings.weight": "model.decoder.embed_positions.weight",
        "decoder.final_layernorm.weight": "model.decoder.final_layer_norm.weight",
        "decoder.final_layernorm.bias": "model.decoder.final_layer_norm.bias",
        "output_layer.weight": "lm_head.weight",
    }
    layer_prefix = "model.decoder.layers"
    inside_layers: ClassVar = {
        "input_layernorm.weight": ("self_attn_layer_norm.weight",),
        "input_layernorm.bias": ("self_attn_layer_norm.bias",),
        "self_attention.linear_qkv.weight": (
            "self_attn.q_proj.weight",
            "self_attn.k_proj.weight",
            "self_attn.v_proj.weight",
        ),
        "self_attention.linear_qkv.bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
        "self_attention.linear_proj.weight": ("self_attn.out_proj.weight",),
        "self_attention.linear_proj.bias": ("self_attn.out_proj.bias",),
        "pre_mlp_layernorm.weight": ("final_layer_norm.weight",),
        "pre_mlp_layernorm.bias": ("final_layer_norm.bias",),
        "mlp.linear_fc1.weight": ("fc1.weight",),
        "mlp.linear_fc1.bias": ("fc1.bias",),
        "mlp.linear_fc2.weight": ("fc2.weight",),
        "mlp.linear_fc2.bias": ("fc2.bias",),
    }

    def problems(self) -> Iterator[str]:
        lm = self.config
        if lm.kv_heads != lm.heads:
            yield (
                f"model.lm.kv_heads = {lm.kv_heads}: OPT has keys and values for every head, "
                f"set it to model.lm.heads = {lm.heads}"
            )

    def core_settings(self) -> dict[str, Any]:
        import torch.nn.functional as F

        return {
            "normalization": "LayerNorm",
            "gated_linear_unit": False,
            "activation_func": F.relu,
            "add_bias_linear": True,
            "add_qkv_bias": True,
        }

    def model_settings(self) -> dict[str, Any]:
        return {"position_embedding_type": "none"}  # AudioLM adds the learnt ones, for added tokens, too

    def tally(self, tally: Tally, x: bool, at: str) -> bool:
        hidden, ffn = self.config.hidden, self.config.ffn
        y = tally.passes(x, f"{at}.input_layernorm.weight", f"{at}.input_layernorm.bias")
        y = tally.linear(y, f"{at}.self_attention.linear_qkv", 3 * hidden**2, "text", bias=True)
        y = tally.attention(y, y, y, hidden, "text_scores")
        x = tally.linear(y, f"{at}.self_attention.linear_proj", hidden**2, "text", bias=True) or x
        y = tally.passes(x, f"{at}.pre_mlp_layernorm.weight", f"{at}.pre_mlp_layernorm.bias")
        y = tally.linear(y, f"{at}.mlp.linear_fc1", hidden * ffn, "text", bias=True)
        return tally.linear(y, f"{at}.mlp.linear_fc2", hidden * ffn, "text", bias=True) or x

    @classmethod
    def read_config(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        for key, computed in (COMPUTED | {"word_embed_proj_dim": values["hidden_size"]}).items():
            if values.get(key, computed) != computed:
                raise ValueError(f"{key} = {values[key]} is not supported, expected {computed}")
        return {
            "hidden": values["hidden_size"],
            "layers": values["num_hidden_layers"],
            "heads": values["num_attention_heads"],
            "kv_heads": values["num_attention_heads"],
            "ffn": values["ffn_dim"],
            "vocab": values["vocab_size"],
            "tied": values.get("tie_word_embeddings", True),
            "norm_eps": NORM_EPS,
            "max_positions": values["max_position_embeddings"],
        }

    def write_config(self) -> dict[str, Any]:
        lm = self.config
        return COMPUTED | {
            "architectures": ["OPTForCausalLM"],
            "model_type": self.model_type,
            "hidden_size": lm.hidden,
            "word_embed_proj_dim": lm.hidden,
            "num_hidden_layers": lm.layers,
            "num_attention_heads": lm.heads,
            "ffn_dim": lm.ffn,
            "vocab_size": lm.vocab,
            "tie_word_embeddings": lm.tied,
            "max_position_embeddings": lm.max_positions,
        }
