"""The language model's shape and layout in megatron-core's words.

lm_config = transformer_config(config, current_device())
"""

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_af.config import Config
from megatron_af.decoder.family import family_of
from megatron_af.decoder.placement import placement
from megatron_af.parallel.device import Device

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def transformer_config(config: Config, device: Device) -> TransformerConfig:
    """megatron-core's configuration of the decoder; what its family decides, the family says.

    The loss is a sum over tokens that is divided once, by the number of supervised tokens of the global
    batch (``calculate_per_token_loss``). The lengths of a step's rows reach the schedule as ``seq_length``.
    """
    lm, parallel = config.model.lm, config.parallel
    dtype = DTYPES[config.precision]
    recompute: dict[str, dict[str, Any]] = {
        "none": {},
        "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
        "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
    }
    # Transformer Engine brings fused kernels; torch's layers compute on a GPU what they compute on the CPU.
    fused = device.layers(config.layers) == "te"
    family = family_of(lm).core_settings()
    return TransformerConfig(
        num_layers=lm.layers,
        hidden_size=lm.hidden,
        num_attention_heads=lm.heads,
        num_query_groups=lm.kv_heads,
        kv_channels=lm.hidden // lm.heads,
        ffn_hidden_size=lm.ffn,
        layernorm_epsilon=lm.norm_eps,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        pipeline_model_parallel_layout=_uneven(config),
        sequence_parallel=parallel.sequence,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        calculate_per_token_loss=True,
        deallocate_pipeline_outputs=True,
        # NCCL groups sends and receives, gloo does not; the interleaved schedule has them go on while it computes.
        batch_p2p_comm=device.is_gpu and parallel.virtual_pipeline == 1,
        batch_p2p_sync=False,  # a guard against a race in versions of torch long gone: it waits for the whole device
        overlap_p2p_comm=parallel.virtual_pipeline > 1,
        # AudioLM fills every weight itself, the same in every layout (decoder/initialization.py)
        perform_initialization=False,
        use_cpu_initialization=not device.is_gpu,
        transformer_impl="transformer_engine" if fused else "local",
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        # of units without a gate, megatron-core fuses an approximated GELU alone
        bias_activation_fusion=fused and bool(family["gated_linear_unit"]),
        bias_dropout_fusion=fused,
        apply_rope_fusion=fused,
        **family,
        **recompute[parallel.recompute],
    )


def _uneven(config: Config) -> list[list[str]] | None:
    """What each chunk holds, in megatron-core's words; None where all hold equally many layers, as they do unasked."""
    chunks = placement(config)
    if len({len(chunk.layers) for chunk in chunks}) == 1:
        return None
    return [
        ["embedding"] * chunk.first + ["decoder"] * len(chunk.layers) + ["loss"] * chunk.last for chunk in chunks
    ]
