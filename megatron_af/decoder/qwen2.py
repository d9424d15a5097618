"""Qwen2 and Qwen2.5: rotary positions, RMSNorm, a gated SiLU unit, biases at query, key and value alone.

Source: ``modeling_qwen2.py`` of transformers, and the ``config.json`` files of the published models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from megatron_af.decoder.family import LanguageFamily
from megatron_af.flops import Tally
from megatron_af.foreign import is_finite

COMPUTED = {"hidden_act": "silu", "use_sliding_window": False, "is_causal": True, "partial_rotary_factor": 1.0}
"""Keys of ``config.json`` and their only value that is computed, which is transformers' default."""
ROPE_BASE = 1e4
"""What transformers turns by where no ``rope_theta`` is stated; every published model states one."""


class Qwen2(LanguageFamily):
    model_type = "qwen2"
    outside_layers: ClassVar = {
        "embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "decoder.final_layernorm.weight": "model.norm.weight",
        "output_layer.weight": "lm_head.weight",
    }
    layer_prefix = "model.layers"
    inside_layers: ClassVar = {
        "input_layernorm.weight": ("input_layernorm.weight",),
        "self_attention.linear_qkv.weight": (
            "self_attn.q_proj.weight",
            "self_attn.k_proj.weight",
            "self_attn.v_proj.weight",
        ),
        "self_attention.linear_qkv.bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
        "self_attention.linear_proj.weight": ("self_attn.o_proj.weight",),
        "pre_mlp_layernorm.weight": ("post_attention_layernorm.weight",),
        "mlp.linear_fc1.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        "mlp.linear_fc2.weight": ("mlp.down_proj.weight",),
    }

    def problems(self) -> Iterator[str]:
        lm = self.config
        if lm.hidden % lm.heads == 0 and lm.hidden // lm.heads % 2:
            yield (
                f"model.lm.heads = {lm.heads} gives model.lm.hidden = {lm.hidden} heads of {lm.hidden // lm.heads}: "
                "rotary positions turn pairs, make it an even number"
            )

    def core_settings(self) -> dict[str, Any]:
        import torch.nn.functional as F

        return {
            "normalization": "RMSNorm",
            "gated_linear_unit": True,
            "activation_func": F.silu,
            "add_bias_linear": False,
            "add_qkv_bias": True,
        }

    def model_settings(self) -> dict[str, Any]:
        return {"position_embedding_type": "rope", "rotary_base": self.config.rope_base}

    def tally(self, tally: Tally, x: bool, at: str) -> bool:
        hidden, ffn = self.config.hidden, self.config.ffn
        key_width = hidden // self.config.heads * self.config.kv_heads
        y = tally.passes(x, f"{at}.input_layernorm.weight")
        y = tally.linear(y, f"{at}.self_attention.linear_qkv", hidden * (hidden + 2 * key_width), "text", bias=True)
        y = tally.attention(y, y, y, hidden, "text_scores")
        x = tally.linear(y, f"{at}.self_attention.linear_proj", hidden**2, "text") or x
        y = tally.passes(x, f"{at}.pre_mlp_layernorm.weight")
        y = tally.linear(y, f"{at}.mlp.linear_fc1", 2 * hidden * ffn, "text")
        return tally.linear(y, f"{at}.mlp.linear_fc2", hidden * ffn, "text") or x

    @classmethod
    def read_config(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        rope: dict[str, Any] = values.get("rope_parameters") or {}  # from transformers 5 on; before: rope_theta
        scaling: dict[str, Any] = values.get("rope_scaling") or {}
        for stated in (values, scaling, rope):
            for key, computed in COMPUTED.items():
                if stated.get(key) not in (None, computed):
                    raise ValueError(f"{key} = {stated[key]!r:.80} is not supported, expected {computed}")
        for stated in (scaling, rope):
            kind = stated.get("rope_type", stated.get("type", "default"))
            if kind != "default":
                raise ValueError(f"RoPE scaling {kind!r} is not supported")
            if by_kind := [key for key, value in stated.items() if isinstance(value, dict)]:
                raise ValueError(f"RoPE of {by_kind[0]} alone is not supported")
        hidden, heads = values["hidden_size"], values["num_attention_heads"]
        if (size := values.get("head_dim")) is not None and size * heads != hidden:
            raise ValueError(f"head_dim = {size} is not supported, expected hidden_size / num_attention_heads")
        if others := set(values.get("layer_types") or ()) - {"full_attention"}:
            raise ValueError(f"layer_types with {min(others)} is not supported, expected full_attention alone")
        # The older name comes first, as transformers has it: whoever stated it had no other.
        base = (scaling or rope).get("rope_theta", values.get("rope_theta", ROPE_BASE))
        return {
            "hidden": hidden,
            "layers": values["num_hidden_layers"],
            "heads": heads,
            "kv_heads": heads if values["num_key_value_heads"] is None else values["num_key_value_heads"],
            "ffn": values["intermediate_size"],
            "vocab": values["vocab_size"],
            "tied": values.get("tie_word_embeddings", False),
            "rope_base": float(base) if is_finite(base) else base,
            "norm_eps": values["rms_norm_eps"],
            "max_positions": values["max_position_embeddings"],
        }

    def write_config(self) -> dict[str, Any]:
        lm = self.config
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": self.model_type,
            "hidden_size": lm.hidden,
            "num_hidden_layers": lm.layers,
            "num_attention_heads": lm.heads,
            "num_key_value_heads": lm.kv_heads,
            "intermediate_size": lm.ffn,
            "vocab_size": lm.vocab,
            "tie_word_embeddings": lm.tied,
            "rope_theta": lm.rope_base,
            "rms_norm_eps": lm.norm_eps,
            "max_position_embeddings": lm.max_positions,
            "use_sliding_window": False,
            "hidden_act": "silu",
        }
