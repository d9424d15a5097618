"""``torchrun tools/pretrain_af.py`` on recordings and a manifest: trains, stops on a signal, resumes exactly."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
import yaml

from tests.text.toy_tokenizer import toy_base

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 20
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


@pytest.fixture(scope="module")
def through(run_folder: Path) -> dict[int, tuple[str, str]]:
    log = train(run_folder, "name=through")
    assert "what trains" in log and set(losses(log)) == set(range(1, STEPS + 1))
    return losses(log)


def signalled(folder: Path, step: int, send: Callable[[psutil.Process], None], *overrides: str) -> tuple[int, str]:
    """Exit code and output of a run to whose launcher something is done after a step."""
    with subprocess.Popen(
        command(folder, *overrides), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith(f"step {step}/"):
                send(psutil.Process(process.pid))
        return process.wait(timeout=60), "".join(lines)


def test_run_killed_without_warning_resumes_as_if_it_had_not_stopped(run_folder: Path, through: Any) -> None:
    def kill(launcher: psutil.Process) -> None:
        for victim in [launcher, *launcher.children(recursive=True)]:
            victim.kill()

    signalled(run_folder, 3, kill, "name=killed", "checkpoint.every_steps=2")
    resumed = losses(train(run_folder, "name=killed"))
    assert 1 < min(resumed) <= STEPS, "no checkpoint was used"
    assert {step: through[step] for step in resumed} == resumed


def test_run_asked_to_stop_writes_its_step_and_resumes_behind_it(run_folder: Path, through: Any) -> None:
    code, log = signalled(run_folder, 3, lambda launcher: launcher.send_signal(signal.SIGTERM), "name=stopped")
    assert code == 128 + signal.SIGTERM, log[-3000:]
    first = losses(log)
    assert 3 <= max(first) < STEPS
    newest = (run_folder / "runs/stopped/align/checkpoints/latest").read_text()
    assert newest == f"step_{max(first):08d}"
    resumed = losses(train(run_folder, "name=stopped"))
    assert min(resumed) == max(first) + 1
    assert first | resumed == through


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
    done = subprocess.run(
        command(run_folder, *overrides), env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 2
    for key in ("parallel.tensor", "model.cross_attention.interval", "data.tokenizer"):
        assert key in done.stderr
    assert done.stderr.count("cannot run on 2 processes") == 1, "one process of a node tells it"
    assert "Traceback" not in done.stderr
