"""``torchrun tools/pretrain_af.py`` on recordings and a manifest: trains, stops on a signal, resumes exactly."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import yaml

from tests.text.toy_tokenizer import toy_base

ROOT = Path(__file__).parents[2]
STEPS = 6
LOGGED = {"loss", "loss/noise", "grad_norm", "learning_rate", "tokens_per_second", "audio_seconds_per_second", "mfu"}
LOGGED |= {"data_wait", "memory_bytes", *(f"gate_{kind}/{layer}" for kind in ("attn", "ffn") for layer in range(2))}


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
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
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
    lines = re.findall(r"step (\d+)/\d+ .*?\| loss ([\d.]+) \| grad ([\d.]+)", log)
    return {int(step): (loss, norm) for step, loss, norm in lines}


def test_run_killed_by_a_signal_resumes_as_if_it_had_not_stopped(run_folder: Path) -> None:
    through = train(run_folder, "name=through")
    assert "what trains" in through and set(losses(through)) == set(range(1, STEPS + 1))

    process = subprocess.Popen(
        command(run_folder, "name=killed", "checkpoint.every_steps=2"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 3/"):
            launcher = psutil.Process(process.pid)
            for victim in [launcher, *launcher.children(recursive=True)]:  # at once and with no warning
                victim.kill()
            break
    process.wait(timeout=60)
    resumed = losses(train(run_folder, "name=killed"))
    assert min(resumed) == 3, "the checkpoint of step 2 was not used"
    assert {step: losses(through)[step] for step in resumed} == resumed


def test_next_stage_starts_from_the_previous_one_and_copies_no_frozen_weights(run_folder: Path) -> None:
    away = ["tracking.enabled=true", "tracking.uri=http://127.0.0.1:9", "tracking.linger_seconds=0"]
    train(run_folder, "name=chain", *away)
    (spool,) = (run_folder / "runs/chain/align/tracking").rglob("spool.jsonl")
    metrics = [record for record in map(json.loads, spool.open()) if record["kind"] == "metrics"]
    assert [record["step"] for record in metrics] == list(range(1, STEPS + 1))
    assert metrics[-1]["values"].keys() >= LOGGED
    log = train(run_folder, "name=chain", "stage=tune")
    assert len(losses(log)) == STEPS
    manifest = json.loads(next((run_folder / "runs/chain/tune").rglob("checkpoint.json")).read_text())
    assert manifest["parts"]["lm"] != "." and manifest["parts"]["encoder"] == "."
    assert list((run_folder / "features").rglob("*")), "the frozen encoder's features were not kept"


def test_impossible_configuration_stops_with_one_message(run_folder: Path) -> None:
    overrides = ["parallel.tensor=3", "model.cross_attention.interval=0", "data.tokenizer=nowhere.json"]
    tool = [sys.executable, str(ROOT / "tools" / "pretrain_af.py"), "--config", str(run_folder / "tiny.yaml")]
    done = subprocess.run(
        [*tool, *overrides], env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    for key in ("parallel.tensor", "model.cross_attention.interval", "data.tokenizer"):
        assert key in done.stderr
    assert "Traceback" not in done.stderr
