"""Cluster files: every shipped one is usable, and every wrong value is named with its key."""

from pathlib import Path

import pytest

from af_pipelines.cluster import ClusterConfig, Volume, check_on_kubernetes, check_placements, load_cluster
from megatron_af.config import ClapConfig, Config, ConfigError, DataConfig, ModelConfig, ParallelConfig, StageConfig
from megatron_af.config.loading import load_config

ROOT = Path(__file__).parents[2]
CLUSTERS = sorted((ROOT / "configs/cluster").glob("*.yaml"))


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_shipped_files(path: Path) -> None:
    cluster = load_cluster(str(path))
    assert not [name for name in cluster.env if "PASSWORD" in name or "TOKEN" in name]


def test_all_problems_at_once(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "namespace: My Team\n"
        "volumes: [{claim: runs, mount: runs}]\n"
        "env: {PET_NNODES: '2'}\n"
        "stages: {nodes: 0, processes: 4, memory: 64 GB, devices: {nvidia.com/gpu: 8}}\n"
        "placements: {tune: {cpu: many}}\n"
        "away_minutes: 90\n"
    )
    with pytest.raises(ConfigError) as error:
        load_cluster(str(path))
    assert [problem.split(" ")[0] for problem in error.value.problems] == [
        "stages.nodes", "stages.memory", "stages.processes", "placements.tune.cpu", "namespace", "volumes:",
        "away_minutes", "env",
    ]  # fmt: skip
    path.write_text("stages: {node: 2}\n")
    with pytest.raises(ConfigError, match=r"did you mean stages\.nodes"):
        load_cluster(str(path))


def test_a_run_must_fit(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("stages: {nodes: 3}\nplacements: {tunes: {nodes: 2}, evaluate-tune: {nodes: 1}}\n")
    stage = StageConfig(trainable=("added_rows",), global_batch_samples=6, micro_batch_samples=1)
    config = Config(name="toy", curriculum={"tune": stage}, parallel=ParallelConfig(tensor=2))
    problems = check_placements(config, load_cluster(str(path)))
    assert problems[0] == (
        "placements.tunes: the run has no such step; it has evaluate-tune, gate, prepare, promote, register, tune"
    )
    assert all(problem.startswith("stage tune on 3 nodes x 1 processes: ") for problem in problems[1:])
    assert len(problems) > 1


def test_names_that_are_no_labels_and_files_on_no_volume() -> None:
    long = "a" * 52  # its evaluation is called evaluate-…
    curriculum = {
        long: StageConfig(objective="contrastive", evaluation=("test",)),
        "_tune": StageConfig(entry={"lm": "checkpoints/qwen/step_00000000", "rows": "/runs/x/step_1", "encoder": long}),
    }
    config = Config(
        name="toy",
        output="/runs",
        data=DataConfig(root="s3://bucket/data", tokenizer="/datasets/tokenizer"),
        model=ModelConfig(clap=ClapConfig(text_tower="intfloat/e5-base")),
        curriculum=curriculum,
    )
    volumes = (Volume(claim="runs", mount="/runs"), Volume(claim="data", mount="/data"))
    problems = check_on_kubernetes(config, ClusterConfig(volumes=volumes))
    keys = [problem.split(": ")[0] for problem in problems]
    assert keys == [
        f"stage {long}",
        "stage _tune",
        "curriculum._tune.entry.lm = checkpoints/qwen/step_00000000",
        "data.tokenizer = /datasets/tokenizer",
    ]
    assert f"its step evaluate-{long} has 61 characters; Kubernetes takes up to 60" in problems[0]
    assert "(mounted: /runs, /data); put it on one" in problems[2]
    assert [problem.split(" = ")[0] for problem in check_on_kubernetes(config, ClusterConfig())][2:4] == [
        "output", "curriculum._tune.entry.lm",
    ]  # fmt: skip


@pytest.mark.parametrize(("run", "cluster"), [("demo", "cpu"), ("af2_3b", "gpu")])
def test_what_ships_lies_on_the_volumes(run: str, cluster: str) -> None:
    settings = load_cluster(str(ROOT / f"configs/cluster/{cluster}.yaml"))
    assert check_on_kubernetes(load_config(ROOT / f"configs/{run}.yaml", settings.overrides), settings) == []
