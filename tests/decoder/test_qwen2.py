"""Qwen2 says what its folders state, and what it does not compute."""

import pytest

from megatron_af.config import LMConfig
from megatron_af.convert.language import hugging_face_names
from megatron_af.decoder.qwen2 import Qwen2


def test_names_of_a_layer_carry_its_number() -> None:
    assert hugging_face_names("lm.decoder.layers.11.mlp.linear_fc1.weight", Qwen2) == (
        "model.layers.11.mlp.gate_proj.weight",
        "model.layers.11.mlp.up_proj.weight",
    )
    assert hugging_face_names("lm.output_layer.weight", Qwen2) == ("lm_head.weight",)
    with pytest.raises(KeyError, match="no counterpart in qwen2"):
        hugging_face_names("lm.decoder.layers.0.xattn.gate_attn", Qwen2)


def test_a_head_of_odd_width_cannot_turn_pairs() -> None:
    (problem,) = Qwen2(LMConfig(hidden=36, heads=4)).problems()
    assert "heads of 9" in problem
    assert not list(Qwen2(LMConfig()).problems())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_scaling": {"type": "yarn"}}, "RoPE scaling 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "RoPE scaling 'linear'"),
    ],
)
def test_a_variant_that_is_not_computed_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Qwen2.read_config(values)


@pytest.mark.parametrize("lm", [LMConfig(), LMConfig(tied=False, heads=8, kv_heads=4, rope_base=1e4, vocab=151_665)])
def test_a_written_config_states_the_same_sizes(lm: LMConfig) -> None:
    written = Qwen2(lm).write_config()
    assert LMConfig(**Qwen2.read_config(written)) == lm
    assert written["architectures"] == ["Qwen2ForCausalLM"] and written["model_type"] == "qwen2"
