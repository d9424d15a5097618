"""A training split and a held-out one, an encoder that hears a recording's digest, and a checkpoint of it."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megatron_af.config import ClapConfig, Config, NeighboursConfig, RetrievalConfig, StageConfig
from megatron_af.data.rows import Clip, Question, Row
from tests.data.toy import toy_config, write_manifest, write_tone

DIM = 16
SKILLS = ("what", "count")


def write_rows(root: Path, name: str, count: int) -> list[Row]:
    """Rows about one clip each, two questions a row; every fourth recording is cut into two pieces, a row each."""
    rows = []
    for i in range(count):
        path = f"{name}/{i - (i % 4 == 3)}.wav"
        if not (root / path).exists():
            write_tone(root / path, 2.0, zlib.crc32(path.encode()))
        clip = Clip(path=path, duration=1.0, start=1.0 if i % 4 == 3 else 0.0)
        questions = tuple(
            Question(prompt=f"{skill} {i}?\nOPTIONS:\n - a.\n - b.", output=f"{skill} of {i}", skill=skill)
            for skill in SKILLS
        )
        rows.append(Row(id=f"{name}-{i}", clips=(clip,), questions=questions, task="listening"))
    return rows


def retrieval_config(folder: Path, train: int = 24, test: int = 4) -> Config:
    """Data sets ``train``, ``test`` (held out) and ``knn``, which is to be made of ``train``."""
    config = toy_config(folder, sizes=(1, 1))
    root = Path(config.data.root)
    datasets = {name: write_manifest(root, name, write_rows(root, name, n)) for name, n in (("train", train),
                ("test", test))}  # fmt: skip
    datasets["knn"] = replace(
        datasets["train"], manifest="knn.jsonl", neighbours=NeighboursConfig(of="train", examples=3)
    )
    clap = StageConfig(objective="contrastive", blend={"train": 1.0}, max_windows=1, evaluation=("test",))
    tune = StageConfig(blend={"knn": 1.0}, global_batch_samples=4, micro_batch_samples=2, max_windows=1)
    return replace(
        config,
        data=replace(config.data, datasets=datasets),
        model=replace(config.model, clap=ClapConfig(text_tower="", joint_dim=DIM)),
        curriculum={"clap": clap, "tune": tune},
        retrieval=RetrievalConfig(stage="clap"),
    )


def write_checkpoint(config: Config, weights: str) -> None:
    """What makes one encoder another one: the files of its checkpoint."""
    checkpoint = config.stage_folder("clap") / "checkpoints" / f"step_{ord(weights):08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_text(weights)
    (checkpoint / "checkpoint.json").write_text(json.dumps({"parts": {"encoder": ".", "clap": "."}}))
    (checkpoint.parent / "latest").write_text(checkpoint.name)


def hear(recording: bytes, start: float) -> Tensor:
    """A unit vector of a recording; its pieces are close to each other."""
    whole, piece = (np.random.default_rng(list(recording[-64:] + extra)) for extra in (b"", str(start).encode()))
    vector = torch.from_numpy(whole.standard_normal(DIM) + 0.1 * piece.standard_normal(DIM)).float()
    return torch.nn.functional.normalize(vector, dim=0)


class StubEmbedder:
    """Stands in for `ClapEmbedder`; counts what it is asked."""

    heard = 0

    def __init__(self, config: Config) -> None:
        assert config.stage == "clap"
        self.config = config

    def audio(self, rows: Sequence[Row], *, root: Path | None = None) -> Tensor:
        type(self).heard += len(rows)
        root = root or Path(self.config.data.root)
        return torch.stack([hear((root / row.clips[0].path).read_bytes(), row.clips[0].start) for row in rows])

    def close(self) -> None:
        pass
