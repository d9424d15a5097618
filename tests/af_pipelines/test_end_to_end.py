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

ROOT = Path(__file__).parents[2]
CONFIG = """
include: [{root}/configs/model/demo.yaml, {root}/configs/data/demo.yaml]
name: pipeline_test
output: {tmp}/runs
precision: fp32
data:
  root: {tmp}/data
  feature_cache: ""
  datasets:
    scenes_knn: {{manifest: train_knn.jsonl, neighbours: {{of: scenes, examples: 2}}}}
retrieval: {{stage: clap}}
checkpoint: {{every_steps: 1}}
log_every_steps: 1
tracking: {{enabled: true, uri: "{store}", system_metrics_seconds: 0, linger_seconds: 120}}
registry: {{gates: {tmp}/gates.yaml}}
steps:
  prepare: {{run: [tools/demo.py, --prepare, --config, "{{config}}"]}}
scenes:
  offline: true
  variants: 2
  texts: 20
  sets:
    train: {{scenes: 12}}
    train_long: {{scenes: 2}}
    development: {{scenes: 2}}
    development_long: {{scenes: 2}}
    test: {{scenes: 4}}
    test_long: {{scenes: 2}}
model:
  encoder: {{embed_dim: 16, depths: [1, 1], heads: [2, 2], patch_size: 16}}
  transform: {{layers: 1, heads: 2, ffn: 64}}
  lm: {{hidden: 64, layers: 2, heads: 4, kv_heads: 2, ffn: 128}}
curriculum:
  clap:
    objective: contrastive
    trainable: ["*"]
    blend: {{scenes: 1}}
    max_windows: 1
    steps: 1
    micro_batch_samples: 2
    global_batch_samples: 8
  align:
    entry: {{encoder: clap}}
    trainable: ["transform.*", "lm.*.xattn.*", "added_rows"]
    blend: {{scenes: 1, scenes_knn: 1}}
    max_windows: 1
    steps: 8
    micro_batch_samples: 1
    global_batch_samples: 4
    evaluation: [test]
"""
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
                if own and "af_pipelines.node" not in command:
                    process.send_signal(signal.SIGKILL)
                    self.killed.set()
                    return


@pytest.mark.timeout(1200)
def test_curriculum_to_a_promoted_model(tmp_path: Path, store: str) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(root=ROOT, tmp=tmp_path, store=store))
    (tmp_path / "gates.yaml").write_text(GATES.format(least=0))
    killer = Killer(tmp_path)
    where = ["--config", str(config), "--cluster", str(ROOT / "configs/cluster/local.yaml")]
    # Two nodes of two processes train; the rest takes one, because starting four costs half a minute.
    sizes = ["cluster.stages.processes=2", "cluster.placements={evaluate-align: {}, retrieval: {}}"]
    code, output = pipelines("run", *where, *sizes, watch=killer)
    assert code == 0, output[-6000:]
    assert killer.killed.is_set()

    folder = tmp_path / "runs/pipeline_test"
    records = {path.stem: json.loads(path.read_text()) for path in (folder / "pipeline/steps").glob("*.json")}
    stages = ("clap", "align")
    assert records.keys() == {"prepare", *stages, "retrieval", "evaluate-align", "register", "gate", "promote"}
    assert {record["state"] for record in records.values()} == {"done"}
    assert records["align"]["restarts"] >= 1
    killed = re.search(r"^\[align\] restart \d of 2: .*SIGKILL", output, flags=re.MULTILINE)
    assert killed
    restarted = output[killed.end() :]
    first = next(line for line in restarted.splitlines() if line.startswith("[align") and "/8" in line)
    assert "step 1/8" not in first, "it goes on from its checkpoint"
    assert "[align 0] " in restarted and "[align 1] " in restarted, "both nodes were started again"

    assert "12 rows with 2 examples each" in output
    made_from = json.loads((folder / "align/stage.json").read_text())["inputs"]
    assert {"data/scenes", "data/scenes_knn"} <= made_from.keys()

    client = MlflowClient(store)
    champion = client.get_model_version_by_alias("pipeline_test", "champion")
    experiment = client.get_experiment_by_name("pipeline_test")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {"pipeline_test", *stages} <= runs.keys()
    assert runs["pipeline_test"].info.status == "FINISHED"

    (tmp_path / "gates.yaml").write_text(GATES.format(least=101))
    code, output = pipelines("run", *where, "--pipeline", "promote")
    assert code == 1
    assert "[gate] failed" in output
    assert "[promote]" not in output
    after = client.get_model_version_by_alias("pipeline_test", "champion")
    assert after.version == champion.version
