"""Which layers a pipeline stage holds: those of the model's family, every k-th one with a gated block in front.

spec = decoder_spec(config.model, lm_config, spec_provider(lm_config), vp_stage)
"""

from megatron.core.models.backends import BackendSpecProvider
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    get_transformer_layer_offset,
)

from megatron_af.config import ModelConfig
from megatron_af.decoder.cross_attention import AudioDecoderLayer
from megatron_af.decoder.family import family_of


def decoder_spec(
    model: ModelConfig, lm_config: TransformerConfig, provider: BackendSpecProvider, vp_stage: int | None = None
) -> TransformerBlockSubmodules:
    """The layers of this rank's pipeline stage (and virtual stage), each with its kind."""
    offset = get_transformer_layer_offset(lm_config, vp_stage)
    layers = range(offset, offset + get_num_layers_to_build(lm_config, vp_stage=vp_stage))
    submodules = family_of(model.lm).layer(provider)
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
        layer_specs=[with_audio if has_block(model, layer) else plain for layer in layers],
        layer_norm=submodules.input_layernorm,
    )


def has_block(model: ModelConfig, layer: int) -> bool:
    """Whether a gated block stands in front of layer ``layer`` (from 0)."""
    return (layer + 1) % model.cross_attention.interval == 0
