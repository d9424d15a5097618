"""A real volume that fills up below a real run: what stands is whole, what is told is a sentence, what can goes on."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import DatasetConfig, TrackingConfig
from megatron_af.config.loading import read_config, to_yaml
from megatron_af.entry import AGAIN
from megatron_af.runs.paths import latest
from megatron_af.runs.whole import damage
from megatron_af.tracking.store import experiment_id, open_client
from tests.faults.kills import ROOT, prepare

IN_A_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
"""A volume that nobody else sees, and that is gone with the command."""
ON_A_VOLUME = """
mount -t tmpfs -o size=$1 tmpfs volume && cp -a before/. volume && shift || exit 99
"$@"
code=$?
cp -a volume after
exit $code
"""
LAUNCHER = ["-m", "megatron_af.pipeline.torchrun", "--standalone", "--nproc_per_node=2", "tools/pretrain_af.py"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not shutil.which("unshare") or bool(subprocess.run([*IN_A_NAMESPACE, "true"], capture_output=True).returncode),
        reason="this system gives its users no namespaces, in which a volume of some size could be mounted",
    ),
]


def on_a_volume(folder: Path, size: str, command: list[str]) -> tuple[int, str]:
    """Run ``python COMMAND`` while ``folder/volume`` is a volume of ``size`` with what is in ``folder/before``.

    What is on it in the end is in ``folder/after`` then.

    Returns:
        Exit code and what was said.
    """
    for name in ("volume", "before"):
        (folder / name).mkdir(exist_ok=True)
    program = [sys.executable, *(str(ROOT / part) if part.startswith("tools/") else part for part in command)]
    done = subprocess.run(
        [*IN_A_NAMESPACE, "sh", "-c", ON_A_VOLUME, "-", size, *program],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kubeflow'}", "OMP_NUM_THREADS": "1"},
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout


def test_a_volume_that_checkpoints_fill_keeps_the_last_whole_one(tmp_path: Path) -> None:
    run = ["--config", str(prepare(tmp_path)), f"output={tmp_path}/volume/runs", "checkpoint.keep=1000"]
    code, said = on_a_volume(tmp_path, "40m", [*LAUNCHER, *run])
    assert code == AGAIN, said
    checkpoints = tmp_path / "after/runs/toy/align/checkpoints"
    newest = latest(checkpoints)
    assert newest is not None and newest.name > "step_00000002" and not damage(newest)
    assert not list(checkpoints.glob("*.partial")), "its space is given back"
    told = [line for line in said.splitlines() if "No space left" in line]
    told = [line for line in told if "records for MLflow are lost" not in line]  # they lie there, too
    assert len(told) == 1 and ".partial" in told[0], said


def test_a_store_of_mlflow_that_is_full_costs_training_nothing(tmp_path: Path) -> None:
    run_file = prepare(tmp_path)
    config, _ = read_config(str(run_file), [])
    tracked = TrackingConfig(uri=f"sqlite:///{tmp_path}/volume/mlflow.db", linger_seconds=1, system_metrics_seconds=0)
    run_file.write_text(to_yaml(replace(config, tracking=tracked)))
    code, said = on_a_volume(tmp_path, "256k", [*LAUNCHER, "--config", str(run_file), "curriculum.align.steps=6"])
    assert code == 0 and "step 6/6" in said, said
    (log,) = (tmp_path / "runs/toy/align/tracking").glob("*/sender.log")
    until = time.monotonic() + 120
    while "gave up" not in log.read_text() and time.monotonic() < until:  # it may outlive the job a little
        time.sleep(0.2)
    assert "disk is full" in log.read_text()
    sent = subprocess.run([sys.executable, "-m", "megatron_af.tracking", str(tmp_path / "runs/toy")], cwd=ROOT,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    client = open_client(tracked.uri)
    (run,) = client.search_runs([experiment_id(client, "toy")], "tags.mlflow.runName = 'align'")
    assert run.data.metrics["loss"] > 0, "what lay below the volume has room"


def test_features_that_a_volume_does_not_take_are_computed_again(tmp_path: Path) -> None:
    run = ["--config", str(prepare(tmp_path)), f"data.feature_cache={tmp_path}/volume", "curriculum.align.steps=12",
           "curriculum.align.trainable=[lm.decoder.layers.*.xattn.*]"]  # fmt: skip
    code, said = on_a_volume(tmp_path, "64k", [*LAUNCHER, *run])
    assert code == 0 and "step 12/12" in said, said
    assert said.count("No space left") == 2, "once by each process"


def test_a_preparation_on_a_full_volume_is_told_of_and_goes_on(tmp_path: Path) -> None:
    run_file, before = prepare(tmp_path), tmp_path / "before"
    (tmp_path / "data").rename(before)
    config, _ = read_config(str(run_file), [])
    data = replace(config.data, root="volume", datasets={"a": DatasetConfig(manifest="prepared/a", source="a.jsonl")})
    stage = replace(config.curriculum["align"], blend={"a": 1.0})
    run_file.write_text(to_yaml(replace(config, data=data, curriculum={"align": stage})))
    tool = ["tools/prepare_data.py", "prepare", "--config", str(run_file)]
    used = int(subprocess.run(["du", "-sk", str(before)], capture_output=True, text=True, check=True).stdout.split()[0])
    code, said = on_a_volume(tmp_path, f"{used + 100}k", tool)
    assert code == AGAIN and said.count("No space left") == 1, said
    shutil.rmtree(before)
    (tmp_path / "after").rename(before)
    code, said = on_a_volume(tmp_path, "100m", tool)
    assert code == 0, said
    assert not list((tmp_path / "after").rglob("*.part*")) and list((tmp_path / "after/prepared/a").glob("*"))
