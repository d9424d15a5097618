"""The cluster launcher against the in-process cluster: one job, and everything that was said of it."""

from collections.abc import Iterator

import pytest

from af_pipelines import trainjob
from af_pipelines.cluster import ClusterConfig
from af_pipelines.manifest import job_name
from megatron_af.pipeline.job import Job
from megatron_af.pipeline.records import Launch
from tests.af_pipelines.fake_cluster import FakeCluster

RUN = Launch(run="20260101-000000-ab12")
ARGV = ("tools/pretrain_af.py", "--config", "/runs/config.yaml", "stage=align")
JOB = Job(name="align", owner="runs/toy", argv=ARGV, nodes=2, processes=8)
NAME = job_name("align", JOB.owner)
CLUSTER = ClusterConfig(pending_minutes=2)


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as fake:
        yield fake


class Launcher:
    """`launch_trainjob` against the fake, with everything it said."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.said: list[str] = []

    def __call__(self, job: Job = JOB, settings: ClusterConfig = CLUSTER, run: Launch = RUN) -> int:
        kube = self.cluster.kube(settings)
        return trainjob.launch_trainjob(job, settings, run, self.said.append, kube=kube)

    @property
    def text(self) -> str:
        return "\n".join(self.said)


@pytest.fixture
def launch(cluster: FakeCluster) -> Launcher:
    return Launcher(cluster)


def pod_name(index: int, restart: int = 0) -> str:
    return f"{NAME}-node-0-{index}-r{restart}"
