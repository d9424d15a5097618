"""What the API server answers when it is busy, away, or does not know the login, as a real one did."""

import subprocess
import sys

import pytest

from af_pipelines import trainjob
from af_pipelines.kube import LOGIN_MINUTES, LONGEST_WAIT_SECONDS, ClusterAway, ClusterError
from af_pipelines.manifest import trainjob_manifest
from tests.af_pipelines.conftest import Passing
from tests.af_pipelines.fake_cluster import FakeCluster
from tests.af_pipelines.launcher import CLUSTER, JOB, NAME, RUN, Launcher


def test_busy_server_is_asked_again(cluster: FakeCluster, launch: Launcher, passing: Passing) -> None:
    cluster.refuse("POST", "trainjobs", 429, "too many requests", retry_after="50")
    cluster.refuse("GET", "pods", 503, "etcd leader changed", times=2)
    cluster.on_get(1, lambda job: cluster.finish(job))
    assert launch() == 0
    assert passing.seconds >= 50, "Retry-After is kept"


def test_server_that_is_away_for_a_while(cluster: FakeCluster, launch: Launcher) -> None:
    cluster.on_get(0, lambda job: cluster.go_away(3))
    cluster.on_get(2, lambda job: cluster.finish(job))
    assert launch() == 0


def test_server_that_stays_away_leaves_the_job_to_the_retry(cluster: FakeCluster, launch: Launcher) -> None:
    cluster.on_get(0, lambda job: cluster.go_away(10_000))
    with pytest.raises(ClusterAway, match=r"has not answered for 30 minutes.*the training job goes on") as failure:
        launch()
    assert not failure.value.give_up
    assert NAME in cluster.jobs
    cluster.go_away(0)
    cluster.on_get(2, lambda job: cluster.finish(job))
    assert launch() == 0
    assert "goes on with TrainJob" in launch.text


def test_a_webhook_that_is_down_is_shown_and_waited_for(cluster: FakeCluster, launch: Launcher) -> None:
    cluster.answer_as("POST", "trainjobs", "create-500-webhook-down", times=2)
    cluster.on_get(0, lambda job: cluster.finish(job))
    assert launch() == 0
    waiting = [line for line in launch.said if "waiting for the API server" in line]
    assert len(waiting) == 1
    assert "failed calling webhook" in waiting[0] and "connection refused" in waiting[0]


@pytest.mark.slow
def test_a_job_that_never_came_to_be_is_not_said_to_go_on(cluster: FakeCluster, launch: Launcher) -> None:
    cluster.answer_as("POST", "trainjobs", "create-500-webhook-down", times=10_000)
    with pytest.raises(ClusterAway, match=r"failed calling webhook.*creating a training job, which does not exist yet"):
        launch()


def test_an_answer_that_was_lost_may_have_made_the_job(cluster: FakeCluster, launch: Launcher) -> None:
    cluster.answer_as("POST", "trainjobs", "create-504-etcd-hangs")
    cluster.jobs[NAME] = trainjob_manifest(JOB, CLUSTER, RUN)
    cluster.on_get(2, lambda job: cluster.finish(job))
    assert launch() == 0
    assert "goes on with TrainJob" in launch.text


def test_a_heartbeat_that_cannot_be_written_ends_nothing(
    cluster: FakeCluster, launch: Launcher, passing: Passing
) -> None:
    cluster.answer_as("PATCH", "trainjobs", "patch-500-webhook-down", times=10_000)
    cluster.on_get(3, lambda job: cluster.finish(job))
    assert launch() == 0
    assert passing.seconds == 3 * trainjob.POLL_SECONDS, "nor holds up the watch"


def test_a_login_that_expires_is_waited_for(cluster: FakeCluster, launch: Launcher, passing: Passing) -> None:
    cluster.on_get(0, lambda job: cluster.answer_as("GET", "trainjobs", "auth-401-bad-token", times=2))
    cluster.on_get(2, lambda job: cluster.finish(job))
    assert launch() == 0
    cluster.jobs.clear()
    cluster.on_get(0, lambda job: cluster.answer_as("GET", "trainjobs", "auth-401-bad-token", times=10_000))
    until = passing.seconds + LOGIN_MINUTES * 60
    with pytest.raises(ClusterAway, match=r"its token has expired.*log in again; the training job goes on") as failure:
        launch()
    assert until - 2 * LONGEST_WAIT_SECONDS < passing.seconds <= until + LONGEST_WAIT_SECONDS
    assert not failure.value.give_up


def test_a_check_refuses_what_would_be_dropped_and_a_job_shows_the_warning(
    cluster: FakeCluster, launch: Launcher
) -> None:
    cluster.answer_as("POST", "trainjobs", "create-400-unknown-field-strict")
    with pytest.raises(ClusterError, match=r'unknown field "spec\.trainer\.numNode"'):
        trainjob.check([JOB], CLUSTER, RUN, kube=cluster.kube(CLUSTER))
    assert "fieldValidation=Strict" in cluster.queries[-1]
    cluster.jobs[NAME] = trainjob_manifest(JOB, CLUSTER, RUN)
    cluster.answer_as("POST", "trainjobs", "create-201-unknown-field-warn")
    cluster.on_get(0, lambda job: cluster.finish(job))
    assert launch() == 0
    assert 'the API server warns: 299 - "unknown field' in launch.text


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("trainjobs", '{"kind": "TrainJobList"}', r"items: expected a list, got nothing"),
        ("trainjobs", '{"items": [{"metadata": {}}]}', r"items\[0\]\.metadata\.name: expected text, got nothing"),
        ("trainjobs", "<html>", "the answer: expected an object, got text"),
        ("pods", '{"kind": "PodList"}', "must not be `None`"),
        ("pods", '{"items": [{"metadata": {"name": "a"}}]}', "a pod without name or status"),
        ("pods", "[3]", "no Kubernetes API server"),
    ],
)
def test_what_is_no_api_server_is_told_of(cluster: FakeCluster, path: str, body: str, told: str) -> None:
    cluster._refusals.append(("GET", path, 200, body, {"Content-Type": "application/json"}))
    kube = cluster.kube(CLUSTER)
    with pytest.raises(ClusterError, match=rf"is no Kubernetes API server.*{told}|{told}.*check the kubeconfig"):
        kube.jobs("") if path == "trainjobs" else kube.pods(NAME)


@pytest.mark.slow
def test_a_time_of_no_zone_prints_nothing() -> None:
    """As the client reads it, in a process of its own: pytest has filters of its own."""
    code = (
        "import af_pipelines.kube; from kubernetes.client import ApiClient; "
        "print(ApiClient()._ApiClient__deserialize_datetime('2026-01-01T00:00:00J'))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "2026-01-01 00:00:00\n" and ended.stderr == ""
