"""Which layers a pipeline stage holds: Qwen2.5 layers, every k-th one with a gated block in front.

spec = decoder_spec(config.model, lm_config, spec_provider(device), vp_stage)
"""

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import BackendSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec_for_backend
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)

from megatron_af.config import ModelConfig
from megatron_af.decoder.cross_attention import AudioDecoderLayer


def decoder_spec(
    model: ModelConfig, lm_config: TransformerConfig, provider: BackendSpecProvider, vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """The layers of this rank's pipeline stage (and virtual stage), each with its kind."""
    offset = get_transformer_layer_offset(lm_config, vp_stage)
    layers = range(offset, offset + get_num_layers_to_build(lm_config, vp_stage=vp_stage))
    norm = provider.layer_norm(rms_norm=True)
    submodules = TransformerLayerSubmodules(
        input_layernorm=norm,
        self_attention=ModuleSpec(
            module=SelfAttention,
            params={"attn_mask_type": AttnMaskType.causal},
            submodules=SelfAttentionSubmodules(
                linear_qkv=provider.column_parallel_linear(),
                core_attention=provider.core_attention(),
                linear_proj=provider.row_parallel_linear(),
            ),
        ),
        self_attn_bda=get_bias_dropout_add,
        pre_mlp_layernorm=norm,
        mlp=get_mlp_module_spec_for_backend(backend=provider),
        mlp_bda=get_bias_dropout_add,
    )
    plain = ModuleSpec(module=TransformerLayer, submodules=submodules)
    with_audio = ModuleSpec(
        module=AudioDecoderLayer,
        submodules=submodules,
        params={
            "cross_attention": model.cross_attention,
            "audio_dim": model.encoder.feature_dim,
            "provider": provider,
        },
    )
    return TransformerBlockSubmodules(
        layer_specs=[with_audio if has_block(model, layer) else plain for layer in layers], layer_norm=norm
    )


def has_block(model: ModelConfig, layer: int) -> bool:
    """Whether a gated block stands in front of layer ``layer`` (from 0)."""
    return (layer + 1) % model.cross_attention.interval == 0
