"""A published CLAP in a stage's place: its embeddings are transformers' own, and its index is no other encoder's."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from transformers import ClapFeatureExtractor

from megatron_af.config import Config, RetrievalConfig
from megatron_af.convert.clap_folder import ClapFolder
from megatron_af.data.rows import Clip, Manifest, Row
from megatron_af.foreign import ForeignError
from megatron_af.inference.embedder import PublishedEmbedder
from megatron_af.retrieval.build import Builder
from megatron_af.retrieval.encoder import embedder_of, encoder_digest, joint_dim
from megatron_af.retrieval.index import NeighbourIndex, StaleIndex
from megatron_af.retrieval.retriever import Retriever
from tests.convert.clap_waves import waves
from tests.convert.toy_clap import RATE, write_clap
from tests.distributed import run_distributed
from tests.retrieval.toy import retrieval_config, write_checkpoint
from tests.told import Told


def heard_by(folder: Path, config: Config) -> Config:
    """The run without a contrastive stage."""
    curriculum = {"tune": replace(config.curriculum["tune"], evaluation=("test",))}
    return replace(config, curriculum=curriculum, retrieval=RetrievalConfig(encoder=str(folder)))


def _embed(rank: int, world_size: int, config: Config, rows: list[Row]) -> Tensor:
    embedder = embedder_of(config)
    audio_NJ = embedder.audio(rows)
    embedder.close()
    return audio_NJ


@pytest.mark.slow
def test_recordings_of_any_length_are_embedded_as_transformers_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of their files, on two ranks; the run's own model hears another window."""
    theirs = write_clap(tmp_path / "clap")
    config = heard_by(tmp_path / "clap", retrieval_config(tmp_path))
    rows = []
    for number, wave in enumerate(waves()):
        soundfile.write(tmp_path / f"data/{number}.wav", wave, RATE, subtype="FLOAT")
        rows.append(Row(id=str(number), clips=(Clip(path=f"{number}.wav", duration=len(wave) / RATE),)))
    monkeypatch.setattr(np.random, "choice", lambda third: third[len(third) // 2])
    inputs = ClapFeatureExtractor.from_pretrained(tmp_path / "clap")(waves(), sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        expected = theirs.get_audio_features(**inputs).pooler_output
    for found in run_distributed(_embed, 2, config, rows):
        assert found.shape == (len(rows), joint_dim(config))
        assert (found - expected).abs().max() < 1e-4


def _index(rank: int, world_size: int, config: Config) -> tuple[list[str], int]:
    told = Told()
    with Builder(config, told) as builder:
        builder.interleave("knn")
    retriever = Retriever(config, "train")
    row = Manifest(Path(config.data.root) / "train.jsonl")[4]
    (found,) = retriever.nearest([Path(config.data.root) / row.clips[0].path], 1)
    shown = retriever.few_shot(list(Manifest(Path(config.data.root) / "test.jsonl")), 2)
    retriever.close()
    assert found[0].similarity == pytest.approx(1.0, abs=1e-3), "tones are close to each other"
    return told.lines, len(shown[0].clips)


@pytest.mark.slow
def test_an_index_is_built_asked_and_refused_to_another_encoder(tmp_path: Path) -> None:
    base = retrieval_config(tmp_path)
    write_checkpoint(base, "a")
    write_clap(tmp_path / "clap")
    config = heard_by(tmp_path / "clap", base)
    ((lines, clips),) = run_distributed(_index, 1, config)
    assert "train: 24 clips of 24 rows indexed" in lines and lines[-1].startswith("knn: 24 rows with 3 examples")
    assert clips == 3
    again = replace(config, retrieval=RetrievalConfig(encoder=str(shutil.move(tmp_path / "clap", tmp_path / "moved"))))
    assert len(NeighbourIndex.open(again, "train")), "the folder's place is no part of what it is"
    write_clap(tmp_path / "other", seed=1)
    for another in (RetrievalConfig(encoder=str(tmp_path / "other")), RetrievalConfig(stage="clap")):
        with pytest.raises(StaleIndex, match="the index of train was built before encoder"):
            NeighbourIndex.open(replace(base, retrieval=another), "train")


def test_what_it_is_follows_from_its_files(tmp_path: Path) -> None:
    write_clap(tmp_path / "clap")
    config = heard_by(tmp_path / "clap", retrieval_config(tmp_path))
    assert PublishedEmbedder.MAX_WINDOWS == 30
    before = encoder_digest(config)
    (tmp_path / "clap/README.md").write_text("no part of it")
    assert encoder_digest(config) == before
    hears = tmp_path / "clap/preprocessor_config.json"
    hears.write_text(hears.read_text().replace('"frequency_max": 8000', '"frequency_max": 7000'))
    assert ClapFolder(tmp_path / "clap").model.front_end.max_hz == 7000 and encoder_digest(config) != before
    shutil.rmtree(tmp_path / "clap")
    with pytest.raises(ForeignError, match=r"expected a Hugging Face folder with config\.json of model_type 'clap'"):
        encoder_digest(config)
