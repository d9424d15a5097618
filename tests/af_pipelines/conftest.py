"""A checkout with this package and tools in small, so that pipelines can be run end to end in seconds.

In this process the launcher's time passes only while it sleeps: a test sees the same number of looks at the cluster on
a machine of any load.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from af_pipelines import clock
from tests.af_pipelines.launcher import cluster, launch  # noqa: F401
from tests.mlflow_store import store, store_template  # noqa: F401

ROOT = Path(__file__).parents[2]
TOOL = """
import pathlib, sys, time
here = pathlib.Path(__file__).parents[1]
with (here / "calls").open("a") as calls:
    calls.write(" ".join([pathlib.Path(__file__).stem, *sys.argv[1:]]) + "\\n")
words = [pathlib.Path(__file__).stem, *(word for word in sys.argv[1:] if not word.startswith(("-", "/")))]
behaviour = here / ("behaviour-" + words[-1].removeprefix("stage="))
print("step 2/2 | loss 0.25 | eta 0:00", flush=True)
if behaviour.exists():
    exec(behaviour.read_text())
"""
TRAINING = TOOL + """
import json, os
from megatron_af.config.loading import load_config
config = load_config(sys.argv[2], sys.argv[3:4])
folder = config.stage_folder(config.stage)
if os.environ["PET_NODE_RANK"] == "0":
    checkpoint = folder / "checkpoints/step_00000002"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "weights").write_text(f"{config.stage} {config.seed}")
    (checkpoint / "checkpoint.json").write_text(json.dumps({"resume": {"step": 2}, "parts": {}}))
    (folder / "checkpoints/latest").write_text(checkpoint.name)
    (folder / "result.json").write_text(json.dumps({"step": 2, "loss": 0.25}))
"""
HEARING = TOOL + """
import json
from megatron_af.config.loading import load_config
config = load_config(sys.argv[2], sys.argv[3:4])
scores = {"skills": {"what": {"audio": 60.0, "n": 4}}, "overall": {"audio": 60.0, "n": 4}}
(config.stage_folder(config.stage) / "hearing.json").write_text(json.dumps({"test": scores}))
from megatron_af.runs.results import bind_results
bind_results(config, [config.stage_folder(config.stage) / "hearing.json"])
"""
NODE = "import runpy, sys\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
CONFIG = """
name: toy
output: {output}
tracking: {{enabled: false}}
launch: {{nodes: 2, processes_per_node: 2}}
data: {{root: {root}, datasets: {{text: {{manifest: text.jsonl}}, test: {{manifest: text.jsonl}}}}}}
curriculum:
  clap: {{steps: 2, trainable: ["*"], blend: {{text: 1}}, micro_batch_samples: 2, objective: contrastive}}
  align:
    steps: 2
    entry: {{encoder: clap}}
    trainable: [added_rows]
    blend: {{text: 1}}
    micro_batch_samples: 2
    evaluation: [test]
"""


class Checkout:
    """A copy of the packages beside tools that only note that they were called."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree(
            ROOT / "kubeflow/af_pipelines", root / "kubeflow/af_pipelines", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copytree(ROOT / "megatron_af", root / "megatron_af", ignore=shutil.ignore_patterns("__pycache__"))
        # torchrun itself is tested in test_local.py and in the end-to-end test; here it would only cost time.
        (root / "megatron_af/pipeline/torchrun.py").write_text(NODE)
        (root / "tools").mkdir()
        for name in ("prepare_data", "promote"):
            (root / f"tools/{name}.py").write_text(TOOL)
        (root / "tools/pretrain_af.py").write_text(TRAINING)
        (root / "tools/evaluate.py").write_text(HEARING)
        (root / "text.jsonl").write_text("{}\n")
        self.output = root / "runs"
        self.config = root / "toy.yaml"
        self.config.write_text(CONFIG.format(output=self.output, root=root))
        self.folder = self.output / "toy/pipeline"

    def behave(self, step: str, code: str) -> None:
        """What the tool of a step does from now on."""
        (self.root / f"behaviour-{step}").write_text(code)

    def calls(self) -> list[str]:
        """Tool and last word of every call so far: each node of a job makes one."""
        path = self.root / "calls"
        if not path.exists():
            return []
        lines = path.read_text().replace(f"--config {self.folder}/config.yaml", "").splitlines()
        return [" ".join(line.split()) for line in lines]

    def start(self, *arguments: str, **env: str) -> "subprocess.Popen[str]":
        paths = {"PYTHONPATH": os.pathsep.join([str(self.root / "kubeflow"), str(self.root)])}
        return subprocess.Popen(
            [sys.executable, "-m", "af_pipelines", *arguments, "--config", str(self.config)],
            cwd=self.root,  # `python -m` looks there first
            env={**os.environ, **paths, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, **env: str) -> tuple[int, str]:
        """Exit code and output of ``python -m af_pipelines … --config toy.yaml``."""
        process = self.start(*arguments, **env)
        try:
            output, _ = process.communicate(timeout=280)
        finally:
            process.kill()
        return process.returncode, output


class Passing:
    """Time that only sleeping makes pass."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture(autouse=True)
def passing(monkeypatch: pytest.MonkeyPatch) -> Passing:
    """The time of `af_pipelines.clock`."""
    time = Passing()
    monkeypatch.setattr(clock, "now", lambda: time.seconds)
    monkeypatch.setattr(clock, "sleep", time.sleep)
    return time


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)
