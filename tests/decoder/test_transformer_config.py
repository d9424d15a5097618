"""The decoder in megatron-core's words: every size at its place, and what a CPU does without."""

from dataclasses import replace

import pytest
import torch

from megatron_af.config import ConfigError
from megatron_af.config.components import UnknownComponent
from megatron_af.config.rules import model_rules
from megatron_af.decoder.attention import TorchSpecProvider, spec_provider
from megatron_af.decoder.transformer_config import transformer_config
from megatron_af.parallel import device as device_module
from megatron_af.parallel.device import Device
from tests.decoder.toy import toy_config

CPU = Device(torch=torch.device("cpu"))


def test_sizes_are_the_models() -> None:
    config = toy_config()
    found, lm = transformer_config(config, CPU), config.model.lm
    assert (found.num_layers, found.hidden_size, found.ffn_hidden_size) == (lm.layers, lm.hidden, lm.ffn)
    assert (found.num_attention_heads, found.num_query_groups, found.kv_channels) == (lm.heads, lm.kv_heads, 16)
    assert found.layernorm_epsilon == lm.norm_eps and found.normalization == "RMSNorm"
    assert found.gated_linear_unit and found.add_qkv_bias and not found.add_bias_linear
    assert found.activation_func is torch.nn.functional.silu
    assert found.hidden_dropout == found.attention_dropout == 0 and found.calculate_per_token_loss


def test_layout_and_precision_are_the_runs() -> None:
    config = toy_config(tensor=2, sequence=True, pipeline=2, virtual_pipeline=2)
    found = transformer_config(replace(config, precision="bf16"), CPU)
    assert (found.tensor_model_parallel_size, found.pipeline_model_parallel_size) == (2, 2)
    assert found.virtual_pipeline_model_parallel_size == 2 and found.sequence_parallel
    assert found.bf16 and found.params_dtype == found.pipeline_dtype == torch.bfloat16
    assert found.overlap_p2p_comm and not found.batch_p2p_sync
    plain = transformer_config(toy_config(), CPU)
    assert not plain.overlap_p2p_comm and not plain.batch_p2p_sync
    assert plain.virtual_pipeline_model_parallel_size is None and not plain.sequence_parallel
    assert not plain.bf16 and plain.params_dtype == torch.float32


@pytest.mark.parametrize(
    ("recompute", "granularity", "layers"),
    [("none", None, None), ("selective", "selective", None), ("full", "full", 1)],
)
def test_recomputation_is_what_was_asked_for(recompute: str, granularity: str | None, layers: int | None) -> None:
    found = transformer_config(toy_config(recompute=recompute), CPU)
    assert (found.recompute_granularity, found.recompute_num_layers) == (granularity, layers)


def test_a_cpu_runs_no_fused_kernel_and_gloo_no_batched_messages() -> None:
    found = transformer_config(toy_config(), CPU)
    fused = (found.bias_activation_fusion, found.bias_dropout_fusion, found.apply_rope_fusion, found.persist_layer_norm)
    assert not any(fused) and not found.batch_p2p_comm and found.use_cpu_initialization
    assert not found.perform_initialization


def test_another_family_is_refused_by_its_name() -> None:
    config = toy_config()
    other = replace(config.model, lm=replace(config.model.lm, family="gpt5"))
    with pytest.raises(UnknownComponent, match="'gpt5'"):
        transformer_config(replace(config, model=other), CPU)
    assert any("model.lm.family = 'gpt5'" in problem for problem in model_rules(other))


def test_a_gpu_without_transformer_engine_has_torchs_layers_and_no_fused_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """megatron-core would build a mock in the place of what is not installed."""
    monkeypatch.setattr(device_module, "transformer_engine_problem", lambda: "is not installed")
    gpu = Device(torch=torch.device("cuda", 0))
    found = transformer_config(toy_config(), gpu)
    fused = (found.bias_activation_fusion, found.bias_dropout_fusion, found.apply_rope_fusion)
    assert not any(fused) and found.transformer_impl == "local"
    assert found.batch_p2p_comm and not found.use_cpu_initialization, "the device is a GPU all the same"
    assert type(spec_provider(found)) is TorchSpecProvider
    with pytest.raises(ConfigError, match="layers = te"):
        transformer_config(replace(toy_config(), layers="te"), gpu)
    asked = transformer_config(replace(toy_config(), layers="torch"), gpu)
    monkeypatch.setattr(device_module, "transformer_engine_problem", lambda: "")
    assert transformer_config(replace(toy_config(), layers="torch"), gpu).transformer_impl == asked.transformer_impl


def test_an_uneven_cut_is_told_and_an_even_one_is_not() -> None:
    assert transformer_config(toy_config(pipeline=2), CPU).pipeline_model_parallel_layout is None
    found = transformer_config(toy_config(pipeline=3), CPU).pipeline_model_parallel_layout
    assert [[layer.name for layer in chunk] for (chunk,) in found.layout] == [
        ["embedding", "decoder", "decoder"], ["decoder"], ["decoder", "loss"],
    ]  # fmt: skip
