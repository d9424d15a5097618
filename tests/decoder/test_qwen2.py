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
        ({"use_sliding_window": True}, "use_sliding_window = True is not supported, expected False"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported, expected silu"),
        ({"is_causal": False}, "is_causal = False"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor = 0\.5"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "RoPE of full_attention alone"),
        ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear"}}, "RoPE scaling 'linear'"),
        ({"head_dim": 32}, "head_dim = 32 is not supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types with sliding_attention"),
        ({"rope_scaling": {"type": "yarn"}}, "RoPE scaling 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "RoPE scaling 'linear'"),
    ],
)
def test_a_variant_that_is_not_computed_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Qwen2.read_config(Qwen2(LMConfig()).write_config() | values)


def test_what_a_config_leaves_out_is_what_transformers_takes() -> None:
    from transformers import Qwen2Config

    stated = Qwen2(LMConfig(heads=8, kv_heads=8)).write_config() | {"num_key_value_heads": None}
    del stated["rope_theta"], stated["tie_word_embeddings"]
    found, theirs = Qwen2.read_config(stated), Qwen2Config(**stated)
    assert found["rope_base"] == theirs.rope_parameters["rope_theta"] == 1e4
    assert (found["tied"], found["kv_heads"]) == (theirs.tie_word_embeddings, theirs.num_key_value_heads) == (False, 8)


@pytest.mark.parametrize(
    "values",
    [
        {"rope_scaling": {"type": "default", "rope_theta": 777.0}},
        {"rope_scaling": {"type": "default", "rope_theta": 777.0}, "rope_parameters": {"rope_theta": 5e5}},
        {"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_theta": 5e5}},
        {"rope_parameters": {"rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 5e5}},
        {"rope_scaling": {}, "rope_parameters": {"rope_theta": 5e5}},
    ],
)
def test_positions_turn_by_what_transformers_takes_wherever_it_is_stated(values: dict[str, object]) -> None:
    from transformers import Qwen2Config

    stated = Qwen2(LMConfig()).write_config() | values
    assert Qwen2.read_config(stated)["rope_base"] == Qwen2Config(**stated).rope_parameters["rope_theta"]


@pytest.mark.parametrize("lm", [LMConfig(), LMConfig(tied=False, heads=8, kv_heads=4, rope_base=1e4, vocab=151_665)])
def test_a_written_config_states_the_same_sizes(lm: LMConfig) -> None:
    written = Qwen2(lm).write_config()
    assert LMConfig(**Qwen2.read_config(written)) == lm
    assert written["architectures"] == ["Qwen2ForCausalLM"] and written["model_type"] == "qwen2"
