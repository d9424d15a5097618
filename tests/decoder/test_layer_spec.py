"""Which layers of a stage have a gated block in front."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from megatron.core.transformer.transformer_layer import TransformerLayer

from megatron_af.decoder import layer_spec
from megatron_af.decoder.attention import spec_provider
from megatron_af.decoder.cross_attention import AudioDecoderLayer
from megatron_af.decoder.layer_spec import decoder_spec, has_block
from megatron_af.decoder.transformer_config import transformer_config
from megatron_af.parallel.device import Device
from tests.decoder.toy import toy_config

CPU = Device(torch=torch.device("cpu"))


@pytest.mark.parametrize(
    ("interval", "with_block"), [(1, [0, 1, 2, 3, 4, 5]), (2, [1, 3, 5]), (3, [2, 5]), (4, [3]), (7, [])]
)
def test_every_kth_layer_has_one(interval: int, with_block: list[int]) -> None:
    model = toy_config(cross_attention={"interval": interval}).model
    assert [layer for layer in range(6) if has_block(model, layer)] == with_block


@pytest.mark.parametrize(("offset", "kinds"), [(0, "plain audio"), (1, "audio plain"), (2, "plain audio")])
def test_a_stage_counts_from_the_models_first_layer(monkeypatch: pytest.MonkeyPatch, offset: int, kinds: str) -> None:
    """Two of the layers, from the ``offset``-th on, as on a pipeline stage."""
    asked: list[Any] = []
    monkeypatch.setattr(layer_spec, "get_transformer_layer_offset", lambda config, vp: asked.append(vp) or offset)
    monkeypatch.setattr(layer_spec, "get_num_layers_to_build", lambda config, vp_stage: asked.append(vp_stage) or 2)
    config = toy_config(cross_attention={"interval": 2})
    lm_config = transformer_config(config, CPU)
    spec = decoder_spec(config.model, lm_config, spec_provider(lm_config), vp_stage=1)
    modules = {AudioDecoderLayer: "audio", TransformerLayer: "plain"}
    assert " ".join(modules[layer.module] for layer in spec.layer_specs) == kinds and asked == [1, 1]
    (audio,) = (layer for layer in spec.layer_specs if layer.module is AudioDecoderLayer)
    assert audio.params["audio_dim"] == config.model.encoder.feature_dim
    assert audio.params["cross_attention"] == config.model.cross_attention
    assert replace(config.model.cross_attention) == audio.params["cross_attention"]
