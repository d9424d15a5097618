"""The exit handler: what seems to run has failed, the MLflow run is ended, jobs are deleted, a report is written."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from af_pipelines.cluster import ClusterConfig, Placement
from af_pipelines.execute import Arguments, ClusterPlace, finish
from af_pipelines.manifest import trainjob_manifest
from megatron_af.config import Config, RetrievalConfig, StageConfig
from megatron_af.config.as_json import to_json
from megatron_af.pipeline import executor
from megatron_af.pipeline.graph import pipeline_steps
from megatron_af.pipeline.job import Job, StepFailed
from megatron_af.pipeline.records import RUNNING, Launch, RunFolder, StepRecord
from tests.af_pipelines.fake_cluster import FakeCluster

pytestmark = pytest.mark.slow

LAUNCH = Launch(run="20260101-000000-ab12")


class Ended:
    """Stands in for the curriculum's MLflow run; what a run does with its end is tested in tests/train/tracking."""

    said: tuple[str, str]

    def end(self, status: str, reason: str) -> None:
        self.said = (status, reason)

    def wait(self, seconds: float) -> None:
        pass


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> Ended:
    ended = Ended()
    monkeypatch.setattr(executor, "start_curriculum_run", lambda config: ended)
    return ended


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    with FakeCluster() as fake:
        (tmp_path / "kubeconfig").write_text(fake.kubeconfig())
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield fake


def arguments(tmp_path: Path, launch: Launch = LAUNCH) -> Arguments:
    config = Config(name="toy", output=str(tmp_path / "runs"), curriculum={"align": StageConfig()})
    return Arguments(config=to_json(config), cluster=to_json(ClusterConfig()), launch=launch)


def test_a_cluster_that_refuses_or_is_away_keeps_no_run_from_its_end(
    tmp_path: Path, cluster: FakeCluster, tracked: Ended
) -> None:
    """An exit handler is not tried again: the run in MLflow would be RUNNING for ever."""
    cluster.refuse("GET", "trainjobs", 403, "trainjobs is forbidden")
    with pytest.raises(StepFailed, match="trainjobs is forbidden"):
        finish(arguments(tmp_path), "FAILED", launcher="trainjob")
    assert tracked.said == ("FAILED", "pipeline failed")
    assert (tmp_path / "runs/toy/pipeline/report.md").is_file()


@pytest.mark.parametrize(
    ("state", "status"),
    [("SUCCEEDED", "FINISHED"), ("FAILED", "FAILED"), ("CANCELLED", "KILLED"), ("CANCELED", "KILLED")],
)
def test_the_curriculums_run_is_ended(tmp_path: Path, tracked: Ended, state: str, status: str) -> None:
    report = finish(arguments(tmp_path), state, launcher="local")
    assert tracked.said == (status, f"pipeline {state.lower()}")
    assert report.startswith(f"# curriculum {LAUNCH.run}: {state.lower()}")
    finish(arguments(tmp_path, Launch(run="r", pipeline="promote")), "FAILED", launcher="local")
    assert tracked.said[0] == status, "a promotion says nothing about the training"


def test_a_step_whose_process_is_gone_has_failed(tmp_path: Path, tracked: Ended) -> None:
    folder = RunFolder(arguments(tmp_path).read_config())
    folder.write_step(StepRecord(step="align", state=RUNNING, launch=LAUNCH, reads="", started=time.time()))
    report = finish(arguments(tmp_path), "FAILED", launcher="local")
    assert "align: its process ended without a word: out of memory, evicted, or a lost node" in report
    assert report == (folder.path / "report.md").read_text()


def test_no_training_job_outlives_its_pipeline(tmp_path: Path, tracked: Ended, cluster: FakeCluster) -> None:
    for step, run in (("align", LAUNCH), ("tune", LAUNCH), ("align", Launch(run="another"))):
        body = trainjob_manifest(Job(name=step, argv=("x",)), ClusterConfig(), run)
        cluster.jobs[body["metadata"]["name"]] = body
        if step == "tune":
            cluster.finish(body)
    finish(arguments(tmp_path), "FAILED", launcher="trainjob")
    left = [(job["metadata"]["labels"]["megatron-af/step"], job["metadata"]["labels"]["megatron-af/run"])
            for job in cluster.jobs.values()]  # fmt: skip
    assert sorted(left) == [("align", "another"), ("tune", LAUNCH.run)], "the other run's, and what has ended"


def test_a_distributed_command_gets_what_a_stage_gets() -> None:
    settings = ClusterConfig(stages=Placement(nodes=2, processes=8), others=Placement(processes=3))
    stages = {"clap": StageConfig(objective="contrastive")}
    config = Config(name="toy", curriculum=stages, retrieval=RetrievalConfig(stage="clap"))
    sizes = {}
    for spec in pipeline_steps(config, "curriculum"):
        job = ClusterPlace(config, settings, LAUNCH, "local").job(spec, spec.name, ("tool.py",))
        body = trainjob_manifest(job, settings, LAUNCH)["spec"]["trainer"]
        sizes[spec.name] = (job.nodes, job.processes, body["numNodes"], body["numProcPerNode"])
    assert sizes["clap"] == sizes["retrieval"] == (2, 8, 2, 8)
    assert sizes["prepare"][:2] == (1, 1)
