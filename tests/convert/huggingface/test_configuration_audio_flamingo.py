"""An exported config states every size, and survives being written and read."""

from pathlib import Path

from megatron_af.config import LMConfig
from megatron_af.convert.huggingface.configuration_audio_flamingo import AudioFlamingoConfig
from megatron_af.decoder.qwen2 import Qwen2
from megatron_af.model import Vocabulary
from megatron_af.release.export import exported_config
from tests import tiny


def test_it_states_the_runs_sizes_and_is_read_again(tmp_path: Path) -> None:
    config = tiny.config(interval=2, tied=False)
    stated = exported_config(config, Vocabulary(first_added_id=90, num_added=4))
    stated.save_pretrained(tmp_path)
    read = AudioFlamingoConfig.from_pretrained(tmp_path)
    assert read.to_dict() == stated.to_dict()
    assert read.audio_attention == {"interval": 2, "heads": 4, "head_dim": 8, "ffn_multiplier": 4, "immediate": False}
    assert read.vocab_size == 94 and read.audio_token_id == 90
    sizes = Qwen2.read_config(read.to_dict() | {"rope_theta": read.rope_parameters["rope_theta"]})
    assert LMConfig(**sizes | {"vocab": 90}) == config.model.lm


def test_the_defaults_are_the_published_encoders() -> None:
    config = AudioFlamingoConfig()
    assert config.audio_width == 2048
    assert AudioFlamingoConfig(audio_encoder={"vector": "mlp"}).audio_width == 512
