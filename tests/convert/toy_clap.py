"""A small LAION-CLAP as transformers writes it, with weights drawn from a seed."""

from pathlib import Path

import torch
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

SECONDS, RATE = 2, 16_000
"""Of its window, and what it hears."""


def write_clap(folder: Path, *, fused: bool = True, seed: int = 0) -> ClapModel:
    """Write its folder; running statistics and relative positions are drawn, too, and nothing stands at 0 or 1."""
    torch.manual_seed(seed)
    audio = {
        "patch_size": 16, "patch_stride": [16, 16], "patch_embeds_hidden_size": 8, "hidden_size": 16,
        "depths": [2, 1], "num_attention_heads": [2, 4], "enable_fusion": fused,
    }  # fmt: skip
    text = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 40
    }  # fmt: skip
    model = ClapModel(ClapConfig(audio_config=audio, text_config=text, projection_dim=12)).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.normal_(std=0.3)
        bins = model.audio_model.audio_encoder.batch_norm
        bins.running_mean.normal_(-40, 5)
        bins.running_var.uniform_(200, 400)
    model.save_pretrained(folder)
    ClapFeatureExtractor(
        sampling_rate=RATE, hop_length=160, max_length_s=SECONDS, frequency_max=8000, padding="repeatpad",
        truncation="fusion" if fused else "rand_trunc",
    ).save_pretrained(folder)  # fmt: skip
    return model
