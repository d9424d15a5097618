"""Live weights follow from a name alone, and none is zero."""

import torch

from megatron_af.prove.live_weights import live


def test_by_name_alone_and_none_is_zero() -> None:
    shapes = {
        "lm.decoder.layers.0.xattn.gate_attn": (1,), "lm.decoder.layers.0.lora.linear_qkv.b": (8, 4),
        "lm.decoder.final_layernorm.weight": (64,), "encoder.norm.bias": (16,),
    }  # fmt: skip
    for name, shape in shapes.items():
        weight = live(name, torch.Size(shape))
        assert weight.shape == shape and torch.equal(weight, live(name, weight.shape)) and weight.all()
        assert not torch.equal(weight, live(name.replace("0", "1") + "_", weight.shape))
    assert 0 < live("x.gate_ffn", torch.Size([1])).item() < 1
