"""The towers of a contrastive stage embed the same on any number of ranks, and no other stage's do."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_af.config import ConfigError
from megatron_af.config.loading import load_config
from megatron_af.data.rows import Manifest
from megatron_af.inference.embedder import ClapEmbedder
from megatron_af.train.trainer import Trainer
from tests.contrastive_run import write_run
from tests.distributed import run_distributed


def _embed(rank: int, world_size: int, file: Path) -> tuple[Tensor, Tensor]:
    config = load_config(file, ["stage=clap", "curriculum.clap.steps=1"])
    if not (file.parent / "runs").exists():
        with Trainer(config) as trainer:
            trainer.train()
    embedder = ClapEmbedder(config)
    rows = Manifest(Path(config.data.root) / "c.jsonl")
    audio, text = embedder.audio(rows[:5]), embedder.texts([row.captions[0] for row in rows[:5]])
    embedder.close()
    with pytest.raises(ConfigError, match="its objective is no contrastive one"):
        ClapEmbedder(load_config(file, ["stage=align"]))
    return audio, text


@pytest.mark.slow
def test_embedder_gives_the_same_on_any_number_of_ranks(tmp_path: Path):
    file = write_run(tmp_path)
    ((audio, text),) = run_distributed(_embed, 1, file)
    assert audio.shape == text.shape == (5, 8)
    torch.testing.assert_close(audio.norm(dim=-1), torch.ones(5))
    for other_audio, other_text in run_distributed(_embed, 2, file):
        torch.testing.assert_close(other_audio, audio, atol=1e-5, rtol=0)
        torch.testing.assert_close(other_text, text, atol=1e-5, rtol=0)
