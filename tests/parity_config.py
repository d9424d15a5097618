"""The configuration of a parity fixture."""

from typing import Any

from megatron_af.config import (
    Config,
    CrossAttentionConfig,
    EncoderConfig,
    LMConfig,
    ModelConfig,
    TransformConfig,
)
from megatron_af.model import Vocabulary
from tests.parity import Fixture


def fixture_config(fixture: Fixture) -> tuple[Config, Vocabulary]:
    info, first_added = fixture.info["config"], fixture.info["config"]["media_id"]
    added = info["vocab"] - first_added
    of_kind: dict[str, dict[str, Any]] = {
        "af1": {
            "transform": {"positions": "sinusoidal", "sees": "row", "row_windows": info.get("windows_per_audio")},
            "lm": {"family": "opt", "max_positions": info.get("max_positions"), "norm_eps": 1e-5},
        },
        "af2": {
            "transform": {},
            "lm": {"rope_base": info.get("rope_theta"), "norm_eps": info.get("rms_eps")},
        },
    }
    own = of_kind[fixture.kind]
    model = ModelConfig(
        # not under test, as small as its output width allows
        encoder=EncoderConfig(
            embed_dim=info["audio_dim"],
            depths=(1,),
            heads=(1,),
            patch_size=32,
            fusion=False,
            classes=0,
            stft_weights=False,
        ),
        transform=TransformConfig(
            layers=info["transform_layers"],
            heads=info.get("transform_heads", 8),
            ffn=info["transform_ffn"],
            **own["transform"],
        ),
        lm=LMConfig(
            hidden=info["hidden"],
            layers=info["layers"],
            heads=info["heads"],
            kv_heads=info.get("kv_heads", info["heads"]),
            ffn=info["ffn"],
            vocab=first_added,
            tied="lang_encoder.lm_head.weight" not in fixture.info["parameters"],
            **own["lm"],
        ),
        cross_attention=CrossAttentionConfig(
            interval=info.get("xattn_every", 1), heads=info["xattn_heads"], head_dim=info["xattn_head_dim"]
        ),
    )
    return Config(name="parity", precision="fp32", model=model), Vocabulary(first_added_id=first_added, num_added=added)
