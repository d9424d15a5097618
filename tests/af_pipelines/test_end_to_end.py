"""The real thing in small: every step with the real tools, two nodes of two processes, a stage that learns from
neighbours and is killed in mid-flight, a model promoted in a fresh MLflow store, and a gate that stops the next one."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from megatron_af.runs.paths import latest, read_resume

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/demo.yaml"
SMALLEST = """
    checkpoint.every_steps=1
    log_every_steps=1
    tracking.enabled=true
    tracking.system_metrics_seconds=0
    tracking.linger_seconds=120
    scenes.offline=true
    scenes.variants=2
    scenes.texts=20
    scenes.sets.train.scenes=12
    scenes.sets.train_silent.scenes=2
    scenes.sets.train_long.scenes=2
    scenes.sets.development.scenes=2
    scenes.sets.development_long.scenes=2
    scenes.sets.test.scenes=4
    scenes.sets.test_long.scenes=2
    scenes.sets.test_few.scenes=2
    model.encoder.embed_dim=16
    model.encoder.depths=[1, 1]
    model.encoder.heads=[2, 2]
    model.transform={layers: 1, heads: 2, ffn: 64}
    model.lm.hidden=64
    model.lm.layers=2
    model.lm.ffn=128
    curriculum.align.blend.scenes_knn=1
    curriculum.align.steps=8
"""
STAGES = ("lm", "clap", "align", "tune", "long")


def smallest(tmp: Path, store: str) -> list[str]:
    """Changes to the demo that leave every step of it and nearly none of its work."""
    lines = [line.strip() for line in SMALLEST.strip().splitlines()]
    for stage in STAGES:
        lines += [f"curriculum.{stage}.micro_batch_samples=1", f"curriculum.{stage}.global_batch_samples=4"]
        lines += [f"curriculum.{stage}.optimizer.warmup_steps=0"]
        lines += [f"curriculum.{stage}.steps=1"] if stage != "align" else []
    return [
        *lines,
        "curriculum.clap.micro_batch_samples=2",
        "curriculum.clap.global_batch_samples=8",
        f"output={tmp}/runs",
        f"data.root={tmp}/data",
        f"tracking.uri={store}",
        f"registry.gates={tmp}/gates.yaml",
    ]


GATES = "gates: {{hears: {{metric: test/overall/audio, min: {least}}}}}\n"


def pipelines(*arguments: str, watch: "Killer | None" = None) -> tuple[int, str]:
    """Exit code and output of ``python -m af_pipelines …``."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kubeflow")])
    process = subprocess.Popen(
        [sys.executable, "-m", "af_pipelines", *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if watch:
                watch(line)
        return process.wait(), "".join(lines)
    finally:
        process.terminate()
        process.wait()


class Killer:
    """Kills one worker of the stage that joins audio and text, as a lost node would, once it has a checkpoint."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self.killed = threading.Event()

    def __call__(self, line: str) -> None:
        if not self.killed.is_set() and line.startswith("[align") and "step 2/8" in line:
            for process in psutil.process_iter(["cmdline"]):
                command = process.info["cmdline"] or []
                # Only this run's own: another one on this machine may train a stage of that name.
                own = "stage=align" in command and self._folder in " ".join(command)
                if own and "megatron_af.pipeline.torchrun" not in command:
                    process.send_signal(signal.SIGKILL)
                    self.killed.set()
                    return


@pytest.mark.timeout(1200)
def test_curriculum_to_a_promoted_model(tmp_path: Path, store: str) -> None:
    (tmp_path / "gates.yaml").write_text(GATES.format(least=0))
    killer = Killer(tmp_path)
    where = ["--config", str(CONFIG), "--cluster", str(ROOT / "configs/cluster/local.yaml")]
    where += smallest(tmp_path, store)
    # Two nodes of two processes train; the rest takes one, because starting four costs half a minute.
    sizes = ["cluster.stages.processes=2", "cluster.placements={evaluate-long: {}, retrieval: {}}"]
    code, output = pipelines("run", *where, *sizes, watch=killer)
    assert code == 0, output[-6000:]
    assert killer.killed.is_set()

    folder = tmp_path / "runs/demo"
    records = {path.stem: json.loads(path.read_text()) for path in (folder / "pipeline/steps").glob("*.json")}
    assert records.keys() == {"prepare", *STAGES, "retrieval", "evaluate-long", "register", "gate", "promote"}
    assert {record["state"] for record in records.values()} == {"done"}
    assert records["align"]["restarts"] >= 1
    killed = re.search(r"^\[align\] restart \d of 2: .*SIGKILL", output, flags=re.MULTILINE)
    assert killed
    restarted = output[killed.end() :]
    first = next(line for line in restarted.splitlines() if line.startswith("[align") and "/8" in line)
    assert "step 1/8" not in first, "it goes on from its checkpoint"
    newest = latest(folder / "align/checkpoints")
    assert newest is not None and read_resume(newest)["world_size"] == 4, "both nodes were started again"

    assert "12 rows with 2 examples each" in output
    made_from = json.loads((folder / "align/stage.json").read_text())["inputs"]
    assert {"data/scenes_skills", "data/scenes_knn"} <= made_from.keys()

    client = MlflowClient(store)
    champion = client.get_model_version_by_alias("demo", "champion")
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {"demo", *STAGES} <= runs.keys()
    assert runs["demo"].info.status == "FINISHED"

    (tmp_path / "gates.yaml").write_text(GATES.format(least=101))
    code, output = pipelines("run", *where, "--pipeline", "promote")
    assert code == 2, "another try would be refused as well"
    assert "[gate] failed" in output
    assert "[promote]" not in output
    after = client.get_model_version_by_alias("demo", "champion")
    assert after.version == champion.version
