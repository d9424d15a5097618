"""A small data folder: tones as wav files, manifests, a tokenizer, and the configuration that reads them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from megatron_af.config import Config, DataConfig, DatasetConfig, FrontEndConfig, ModelConfig, StageConfig
from megatron_af.data.batch import EncoderSide
from megatron_af.data.rows import Clip, Question, Row, to_json
from megatron_af.data.stream import Stream
from megatron_af.parallel.device import Device
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.objectives.base import objective_of
from tests.text.toy_tokenizer import toy_base

CPU = Device(torch=torch.device("cpu"))
FRONT_END = FrontEndConfig(window_seconds=1.0)


def write_tone(path: Path, seconds: float, seed: int, rate: int = 16_000) -> None:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, (0.1 * rng.standard_normal(round(seconds * rate))).astype(np.float32), rate)


def toy_rows(root: Path, name: str, count: int) -> list[Row]:
    """Every fourth row is text only, every third has two clips; clips last 0.5 to 3 s."""
    rows = []
    for i in range(count):
        clips = []
        for c in range(0 if i % 4 == 3 else 2 if i % 3 == 2 else 1):
            seconds = 0.5 + (i * 7 + c * 3) % 6 / 2
            path = f"{name}/{i}-{c}.wav"
            write_tone(root / path, seconds, ord(name) * 1000 + i * 10 + c)
            clips.append(Clip(path=path, duration=seconds))
        questions = tuple(
            Question(prompt=f"{name} {i} question {q}?", output=f"answer {i} {q}" * (q + 1), skill=f"s{q}")
            for q in range(3)
        )
        rows.append(Row(id=f"{name}-{i}", clips=tuple(clips), questions=questions, captions=(f"caption {i}",)))
    return rows


def write_manifest(root: Path, name: str, rows: list[Row]) -> DatasetConfig:
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{name}.jsonl").write_text("".join(to_json(row) + "\n" for row in rows), encoding="utf-8")
    return DatasetConfig(manifest=f"{name}.jsonl")


def toy_config(folder: Path, stage: StageConfig | None = None, sizes: tuple[int, int] = (12, 8)) -> Config:
    """Data sets ``a`` and ``b`` below ``folder``; weights 1 and 1.5."""
    root = folder / "data"
    datasets = {
        name: write_manifest(root, name, toy_rows(root, name, size))
        for name, size in zip(("a", "b"), sizes, strict=True)
    }
    toy_base().save(str(root / "tokenizer.json"))
    stage = stage or StageConfig(global_batch_samples=8, micro_batch_samples=2, questions_per_sample=2)
    return Config(
        name="toy",
        output=str(folder / "runs"),
        precision="fp32",
        model=ModelConfig(front_end=FRONT_END),
        data=DataConfig(root=str(root), tokenizer=str(root / "tokenizer.json"), datasets=datasets),
        curriculum={"tune": replace(stage, blend={"a": 1.0, "b": 1.5})},
        stage="tune",
    )


def open_stream(
    config: Config,
    *,
    dp: tuple[int, int] = (0, 1),
    mp: tuple[int, int] = (0, 1),
    start: int = 0,
    encoder_side: EncoderSide | None = None,
) -> Stream[Any, Any]:
    """The stream of ``config.stage`` on one rank (rank, size) of each group."""
    stage = config.curriculum[config.stage]
    texts = objective_of(stage).texts(config, stage, Tokenizer.load(config.data.tokenizer))
    return Stream(
        config,
        stage,
        texts,
        dp_rank=dp[0],
        dp_size=dp[1],
        mp_rank=mp[0],
        mp_size=mp[1],
        device=CPU,
        start_step=start,
        encoder_side=encoder_side,
    )
