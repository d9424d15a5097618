"""The towers of a contrastive stage embed the same on any number of ranks, and no other stage's do."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from megatron_af.config import ConfigError
from megatron_af.config.loading import load_config
from megatron_af.data.rows import Manifest
from megatron_af.inference import embedder
from megatron_af.inference.embedder import ClapEmbedder
from megatron_af.train.trainer import Trainer
from tests import tiny
from tests.contrastive_run import write_run
from tests.distributed import run_distributed


def test_a_published_tower_hears_by_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen recordings of five minutes are 480 of them, in float32."""
    calls: list[int] = []

    class Tower(nn.Module):
        def forward(self, mel_WFM: Tensor) -> Tensor:
            calls.append(len(mel_WFM))
            return mel_WFM[:, :1]

    config = tiny.config()
    folder: Any = SimpleNamespace(model=config.model, load=lambda tower: None)
    monkeypatch.setattr(embedder, "encoder_of", lambda encoder: SimpleNamespace(build=lambda front_end: Tower()))
    monkeypatch.setattr(embedder, "ClipLoader", lambda *arguments, **named: None)
    mel_WFM = torch.randn(150, 4, 5)
    audio_CJ = embedder.PublishedEmbedder(config, folder)._embed(mel_WFM, [70, 80])
    assert calls == [64, 64, 22]
    means = torch.stack([part.mean(0) for part in torch.split(mel_WFM[:, 0], [70, 80])])
    torch.testing.assert_close(audio_CJ, torch.nn.functional.normalize(means, dim=-1))


def _embed(rank: int, world_size: int, file: Path) -> tuple[Tensor, Tensor]:
    config = load_config(file, ["stage=clap", "curriculum.clap.steps=1"])
    if not (file.parent / "runs").exists():
        with Trainer(config) as trainer:
            trainer.train()
    towers = ClapEmbedder(config)
    rows = Manifest(Path(config.data.root) / "c.jsonl")
    audio, text = towers.audio(rows[:5]), towers.texts([row.captions[0] for row in rows[:5]])
    towers.close()
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
