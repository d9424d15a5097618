"""A toy run in a folder, and the tool that trains it, as a process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from tests.text.toy_tokenizer import toy_base

ROOT = Path(__file__).parents[2]
STEPS = 20


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips of unequal length with questions, a tokenizer and a YAML file."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "data").mkdir()
    generator = np.random.default_rng(0)
    rows = []
    for i in range(12):
        seconds = 3.0 + 4 * (i % 3)
        samples = generator.standard_normal(round(seconds * 16_000)) * 0.1
        soundfile.write(folder / "data" / f"{i}.flac", samples, 16_000)
        clips = [] if i == 5 else [{"path": f"{i}.flac", "duration": seconds}]
        questions = [{"prompt": f"what is sound {q}?", "output": f"noise {i % 4}"} for q in range(3)]
        rows.append({"id": str(i), "clips": clips, "questions": questions})
    (folder / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    toy_base().save(str(folder / "tokenizer.json"))
    stage = {
        "trainable": ["transform.*", "added_rows", "lm.*.xattn.*"],
        "blend": {"noise": 1.0},
        "max_windows": 2,
        "global_batch_samples": 4,
        "micro_batch_samples": 2,
        "questions_per_sample": 2,
        "max_text_tokens": 64,
        "steps": STEPS,
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2, "schedule": "cosine"},
    }
    config = {
        "name": "tiny",
        "output": str(folder / "runs"),
        "precision": "fp32",
        "model": {
            "encoder": {
                "embed_dim": 16,
                "depths": [1, 1],
                "heads": [2, 2],
                "patch_size": 16,
                "fusion": False,
                "classes": 0,
            },
            "transform": {"layers": 1, "heads": 2, "ffn": 48},
            "lm": {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 96, "vocab": 257, "max_positions": 128},
            "cross_attention": {"heads": 4, "head_dim": 8},
        },
        "data": {
            "root": str(folder / "data"),
            "tokenizer": str(folder / "tokenizer.json"),
            "datasets": {"noise": {"manifest": "train.jsonl"}},
            "feature_cache": str(folder / "features"),
        },
        "curriculum": {
            "align": stage,
            "tune": {**stage, "trainable": [*stage["trainable"], "encoder.*"], "entry": {"all": "align"}},
        },
        "tracking": {"enabled": False},
        "stage": "align",
        "log_every_steps": 1,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return folder


def command(folder: Path, *overrides: str) -> list[str]:
    launch = [sys.executable, "-m", "megatron_af.pipeline.torchrun", "--standalone", "--nproc_per_node", "2"]
    return [*launch, str(ROOT / "tools" / "pretrain_af.py"), "--config", str(folder / "tiny.yaml"), *overrides]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def train(folder: Path, *overrides: str) -> str:
    done = subprocess.run(
        command(folder, *overrides), env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def losses(log: str) -> dict[int, tuple[str, str]]:
    """Step -> (loss, gradient norm) as printed."""
    lines = re.findall(r"step (\d+)/\d+ .*?\| loss ([\d.]+) .*?\| grad ([\d.]+)", log)
    return {int(step): (loss, norm) for step, loss, norm in lines}


def newest(folder: Path) -> Path:
    return folder / "converted" / (folder / "converted/latest").read_text()


def tool_run(script: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        env=environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
