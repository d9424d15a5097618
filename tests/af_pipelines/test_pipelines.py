"""The compiled pipeline: the same bytes every time, a golden file, nothing secret, the graph of the configuration.

After a change that is meant: python tests/af_pipelines/test_pipelines.py
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from af_pipelines.cluster import ClusterConfig, Placement, SecretKey, Volume
from af_pipelines.execute import Arguments
from af_pipelines.pipelines import compile_pipeline, task_names
from megatron_af.config import (
    BoundsConfig,
    Config,
    DataConfig,
    DatasetConfig,
    NeighboursConfig,
    RetrievalConfig,
    StageConfig,
)
from megatron_af.config.as_json import to_json
from megatron_af.pipeline.graph import pipeline_steps
from megatron_af.pipeline.records import Launch

GOLDEN = Path(__file__).parent / "golden/curriculum.yaml"
CONFIG = Config(
    name="golden",
    data=DataConfig(
        datasets={
            "train": DatasetConfig(manifest="prepared/train"),
            "knn": DatasetConfig(manifest="knn.jsonl", neighbours=NeighboursConfig(of="train")),
        }
    ),
    retrieval=RetrievalConfig(stage="clap"),
    curriculum={
        "clap": StageConfig(objective="contrastive", evaluation=("test",), exit_gate={"loss": BoundsConfig(max=3)}),
        "align": StageConfig(entry={"encoder": "clap"}),
        "tune": StageConfig(entry={"all": "align"}, blend={"train": 1.0, "knn": 0.5}, evaluation=("test",)),
    },
)
CLUSTER = ClusterConfig(
    image="registry.example/megatron-af:1",
    image_pull_secrets=("registry",),
    volumes=(Volume(claim="af-data", mount="/data"), Volume(claim="af-runs", mount="/runs")),
    env={"MLFLOW_TRACKING_URI": "http://mlflow:5000"},
    secrets={"MLFLOW_TRACKING_PASSWORD": SecretKey(secret="mlflow-login", key="password")},
    stages=Placement(nodes=2, processes=8, devices={"nvidia.com/gpu": 8}),
    others=Placement(cpu="4", memory="16Gi"),
    placements={"gate": Placement(devices={"nvidia.com/gpu": 1}, node_selector={"pool": "a"}, tolerate=("gpu",))},
)


def compiled(path: Path, pipeline: str = "curriculum") -> str:
    launch = Launch(run="", pipeline=pipeline)
    compile_pipeline(Arguments(config=to_json(CONFIG), cluster=to_json(CLUSTER), launch=launch), path)
    return path.read_text()


@pytest.mark.slow
def test_golden_file(tmp_path: Path) -> None:
    assert compiled(tmp_path / "out.yaml") == GOLDEN.read_text(), "see this file's docstring"


@pytest.mark.slow
def test_same_bytes_whatever_the_hash_seed(tmp_path: Path) -> None:
    outputs = []
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.yaml"
        root = Path(__file__).parents[2]
        paths = os.pathsep.join([str(root), str(root / "kubeflow")])
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        subprocess.run([sys.executable, __file__, str(out)], check=True, env=env)
        outputs.append(out.read_bytes())
    assert outputs[0] == outputs[1] == GOLDEN.read_bytes()


@pytest.mark.slow
def test_every_step_is_found_under_the_name_of_its_task(tmp_path: Path) -> None:
    """AF1 has a stage ``four_shot``, whose task is ``four-shot``."""
    stages = {name: StageConfig() for name in ("four_shot", "v1.5", "Four-Shot", "finish")}
    config, launch = Config(name="names", curriculum=stages), Launch(run="")
    path = tmp_path / "out.yaml"
    compile_pipeline(Arguments(config=to_json(config), cluster=to_json(CLUSTER), launch=launch), path)
    pipeline, _ = yaml.safe_load_all(path.read_text())
    tasks = pipeline["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    called = {task["inputs"]["parameters"]["step"]["runtimeValue"]["constant"]: name for name, task in tasks.items()}
    assert called == task_names(pipeline_steps(config, "curriculum"))
    assert (called["four_shot"], called["Four-Shot"], called["finish"]) == ("four-shot", "four-shot-2", "finish-2")


@pytest.mark.slow
def test_graph_and_platform(tmp_path: Path) -> None:
    pipeline, platform = yaml.safe_load_all(compiled(tmp_path / "out.yaml"))
    tasks: dict[str, Any] = pipeline["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    waits = {name: sorted(task.get("dependentTasks", [])) for name, task in tasks.items()}
    assert waits == {
        "prepare": [],
        "clap": ["prepare"],
        "evaluate-clap": ["clap"],
        "align": ["evaluate-clap", "prepare"],
        "retrieval": ["clap"],
        "tune": ["align", "prepare", "retrieval"],
        "evaluate-tune": ["tune"],
        "register": ["align", "clap", "evaluate-clap", "evaluate-tune", "tune"],
        "gate": ["register"],
        "promote": ["gate"],
    }
    assert all("enableCache" not in task["cachingOptions"] for task in tasks.values())
    assert all(task["retryPolicy"]["maxRetryCount"] == 2 for task in tasks.values())
    last = pipeline["root"]["dag"]["tasks"]["finish"]
    assert last["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    executors = pipeline["deploymentSpec"]["executors"]
    assert executors["exec-tune"]["container"]["image"] == CLUSTER.image
    assert "accelerator" not in str(executors["exec-tune"]["container"]["resources"]), "it only watches"
    assert "accelerator" not in str(executors["exec-retrieval"]["container"]["resources"]), "its training job embeds"
    assert executors["exec-gate"]["container"]["resources"]["accelerator"]["resourceCount"] == "1"
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert [mount["mountPath"] for mount in pods["exec-tune"]["pvcMount"]] == ["/data", "/runs"]
    assert pods["exec-gate"]["nodeSelector"] == {"labels": {"pool": "a"}}
    assert pods["exec-prepare"]["secretAsEnv"][0]["secretName"] == "mlflow-login"


def test_arguments_survive_as_one_line() -> None:
    arguments = Arguments(config=to_json(CONFIG), cluster=to_json(CLUSTER), launch=Launch(run="r"))
    assert "\n" not in arguments.config + arguments.cluster
    assert arguments.read_config() == CONFIG
    assert arguments.read_cluster() == CLUSTER
    assert len(to_json(Config(name="x"))) < 20, "defaults are left out"


if __name__ == "__main__":
    compiled(Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN)
