"""``torchrun tools/pretrain_af.py`` on recordings and a manifest: trains, stops on a signal, resumes exactly."""

import json
import signal
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_af.config.loading import load_config
from megatron_af.parallel import groups, world
from megatron_af.train.trainer import train_stage
from tests.train import toy_run
from tests.train.toy_run import ROOT, STEPS, command, environment, losses, train

pytestmark = pytest.mark.slow
run_folder = toy_run.run_folder

LOGGED = {"loss", "loss/noise", "grad_norm", "learning_rate", "tokens_per_second", "audio_seconds_per_second", "mfu"}
LOGGED |= {"data_wait", "memory_bytes", *(f"gate_{kind}/{layer}" for kind in ("attn", "ffn") for layer in range(2))}


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


def test_collectives_have_the_patience_of_the_run(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of all processes, which the tool joins, and those of the groups that the trainer makes."""

    class Met(BaseException):
        pass

    def meet(*given: Any) -> None:
        raise Met(given[-1])

    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import pretrain_af

    config = load_config(run_folder / "tiny.yaml", ["launch.hang_seconds=7200"])
    waiting = timedelta(seconds=7320)
    monkeypatch.setattr(world, "join_world", meet)
    with pytest.raises(Met) as met:
        pretrain_af.train(config, 1)
    assert met.value.args == (waiting,)
    monkeypatch.setattr(groups, "initialize", meet)
    with pytest.raises(Met) as met:
        train_stage(config, list)
    assert met.value.args == (waiting,)
