"""The cluster launcher's whole life, through the real Kubernetes client, against an HTTP server in this process."""

import dataclasses
import os
import signal
from datetime import UTC, datetime, timedelta

import pytest

from af_pipelines import trainjob
from af_pipelines.cluster import ClusterConfig
from af_pipelines.kube import ClusterError
from af_pipelines.manifest import ATTEMPT, HEARTBEAT, WATCHER, trainjob_manifest
from megatron_af.entry import Cancelled
from megatron_af.pipeline.job import StepFailed
from megatron_af.pipeline.records import Launch
from tests.af_pipelines.conftest import Passing
from tests.af_pipelines.fake_cluster import FakeCluster, Object
from tests.af_pipelines.launcher import CLUSTER, JOB, NAME, RUN, Launcher, pod_name


def test_failure_ends_with_the_last_errors_text(cluster: FakeCluster, launch: Launcher) -> None:
    def fail(job: Object) -> None:
        cluster.run_pods(job)
        ended = {"exitCode": 1, "reason": "Error", "finishedAt": "2026-01-01T00:00:01Z", "message": ""}
        cluster.pods[1] = cluster.pod(
            NAME, 1, phase="Failed", state={"terminated": ended | {"message": "Traceback\nOSError: disk is full\n"}}
        )
        cluster.print(pod_name(0), "RuntimeError: Connection closed by peer")
        cluster.finish(job, "Failed", "ReachedMaxRestarts", "jobset failed due to reaching max number of restarts")

    cluster.on_get(0, fail)
    with pytest.raises(StepFailed, match=r"ReachedMaxRestarts.*node 1 exit code 1: OSError: disk is full") as failure:
        launch()
    assert not failure.value.give_up
    cluster.on_get(1, lambda job: cluster.finish(job))
    assert launch() == 0, "a retry replaces it"
    assert f"[align] replacing TrainJob {NAME} (Failed ReachedMaxRestarts" in launch.text


def test_a_job_that_gave_up_is_not_repeated_in_the_same_attempt(cluster: FakeCluster, launch: Launcher) -> None:
    cluster.on_get(0, lambda job: cluster.finish(job, "Failed", "FailJobSetFailurePolicyAction", "exit code 42"))
    for _ in range(2):
        with pytest.raises(StepFailed, match="exit code 42") as failure:
            launch()
        assert failure.value.give_up
    assert launch.text.count("created") == 1

    cluster.on_get(1, lambda job: cluster.finish(job))
    assert launch(run=Launch(run=RUN.run, attempt=2)) == 0
    assert "replacing" in launch.text
    assert cluster.jobs[NAME]["metadata"]["annotations"][ATTEMPT] == "2"


@pytest.mark.parametrize("state", ["running", "complete"])
def test_goes_on_with_the_job_of_a_lost_process(cluster: FakeCluster, launch: Launcher, state: str) -> None:
    body = trainjob_manifest(JOB, CLUSTER, RUN)
    cluster.jobs[NAME] = body
    if state == "complete":
        cluster.finish(body)
    cluster.on_get(2, lambda job: cluster.finish(job))
    assert launch() == 0
    assert launch.said[0] == f"[align] goes on with TrainJob {NAME}, which an earlier try of this step created"
    assert not [request for request in cluster.requests if request.startswith("DELETE")]


def test_a_job_made_from_other_settings_is_replaced(cluster: FakeCluster, launch: Launcher) -> None:
    cluster.jobs[NAME] = trainjob_manifest(JOB, ClusterConfig(image="other:1"), RUN)
    cluster.linger = 2
    cluster.on_get(1, lambda job: cluster.finish(job))
    assert launch() == 0
    assert launch.said[0] == f"[align] replacing TrainJob {NAME} (made from other settings)"
    assert cluster.jobs[NAME]["spec"]["trainer"]["image"] == CLUSTER.image


def test_waits_for_a_job_that_is_still_being_deleted(cluster: FakeCluster, launch: Launcher) -> None:
    cluster.jobs[NAME] = trainjob_manifest(JOB, CLUSTER, RUN)
    cluster.jobs[NAME]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    cluster.linger = 3
    cluster.on_get(0, lambda job: cluster.finish(job))
    assert launch() == 0
    assert "is still being deleted; waiting" in launch.said[0]


@pytest.mark.slow
@pytest.mark.parametrize("left", ["job", "pods"])
def test_a_job_that_never_goes_is_not_waited_for_for_ever(
    cluster: FakeCluster, launch: Launcher, passing: Passing, left: str
) -> None:
    cluster.jobs[NAME] = trainjob_manifest(JOB, ClusterConfig(image="other:1"), RUN)
    cluster.run_pods(cluster.jobs[NAME])
    cluster.linger, cluster.pods_linger = (10_000, 0) if left == "job" else (0, 10_000)
    see = "trainjob " if left == "job" else "pods -l jobset"
    with pytest.raises(StepFailed, match=f"still there 420 s after its deletion.*`kubectl describe {see}") as failure:
        launch()
    assert not failure.value.give_up
    assert trainjob.DELETE_SECONDS < passing.seconds < trainjob.DELETE_SECONDS + 60
    assert launch.text.count("created") == 0, "its pods still write"


def test_job_that_vanishes_between_two_calls(cluster: FakeCluster, launch: Launcher) -> None:
    cluster.refuse("POST", "trainjobs", 409, "already exists")
    cluster.on_get(0, lambda job: cluster.finish(job))
    assert launch() == 0


def test_sigterm_deletes_the_job(cluster: FakeCluster, launch: Launcher) -> None:
    cluster.on_get(2, lambda job: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Cancelled):
        launch()
    assert NAME not in cluster.jobs
    assert f"[align] stopping: deleting TrainJob {NAME}" in launch.said
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_deadline_is_final(cluster: FakeCluster, launch: Launcher) -> None:
    assert trainjob_manifest(JOB, CLUSTER, RUN)["spec"]["activeDeadlineSeconds"] == 7 * 24 * 3600
    cluster.on_get(0, lambda job: cluster.finish(job, "Failed", "DeadlineExceeded", "active longer than deadline"))
    with pytest.raises(StepFailed, match="DeadlineExceeded") as failure:
        launch()
    assert failure.value.give_up


def test_job_deleted_by_someone(cluster: FakeCluster, launch: Launcher) -> None:
    cluster.on_get(1, lambda job: cluster.jobs.clear())
    with pytest.raises(StepFailed, match="was deleted by someone else"):
        launch()


def test_check_asks_without_making_anything(cluster: FakeCluster) -> None:
    trainjob.check([JOB], CLUSTER, RUN, kube=cluster.kube(CLUSTER))
    assert not cluster.jobs
    cluster.jobs[NAME] = trainjob_manifest(JOB, CLUSTER, RUN)
    trainjob.check([JOB], CLUSTER, RUN, kube=cluster.kube(CLUSTER))
    cluster.refuse("POST", "trainjobs", 404, "404 page not found")
    with pytest.raises(ClusterError, match="install Kubeflow Trainer"):
        trainjob.check([JOB], CLUSTER, RUN, kube=cluster.kube(CLUSTER))


def test_the_last_pod_of_a_replaced_job_has_ended_before_the_next_starts(
    cluster: FakeCluster, launch: Launcher
) -> None:
    cluster.jobs[NAME] = trainjob_manifest(JOB, ClusterConfig(image="other:1"), RUN)
    cluster.run_pods(cluster.jobs[NAME])
    cluster.pods_linger = 4
    cluster.on_get(1, lambda job: cluster.finish(job))
    assert launch() == 0
    created = max(place for place, request in enumerate(cluster.requests) if request.startswith("POST"))
    lists = [place for place, request in enumerate(cluster.requests) if request.endswith("/pods")]
    assert sum(place < created for place in lists) == 5, "until the list is empty"
    assert not cluster.pods, "and no pod was made for the deleted job"


def test_a_deletion_that_is_stuck_in_the_foreground_is_taken_over(cluster: FakeCluster, launch: Launcher) -> None:
    cluster.jobs[NAME] = trainjob_manifest(JOB, CLUSTER, RUN)
    cluster.jobs[NAME]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    cluster.linger = 10_000
    cluster.on_get(0, lambda job: cluster.finish(job))

    def delete(self: FakeCluster) -> None:
        del self.jobs[NAME]

    original = cluster._job

    def answer(method: str, name: str | None, query: dict[str, str], body: Object) -> tuple[int, object]:
        if method == "DELETE" and name == NAME:
            delete(cluster)
            return 200, {}
        return original(method, name, query, body)

    cluster._job = answer  # type: ignore[method-assign]
    assert launch() == 0


def test_another_run_does_not_write_the_same_folder(cluster: FakeCluster, launch: Launcher) -> None:
    other = Launch(run="20260101-000000-ffff")
    cluster.jobs[NAME] = trainjob_manifest(JOB, CLUSTER, other) | {"status": {}}
    with pytest.raises(StepFailed, match=rf"align is being trained by run {other.run}") as failure:
        launch()
    assert failure.value.give_up
    assert not [request for request in cluster.requests if request.startswith(("DELETE", "PATCH"))]

    lost = cluster.jobs[NAME]["metadata"]["annotations"]
    lost[HEARTBEAT] = (datetime.now(UTC) - timedelta(hours=3)).strftime("%Y-%m-%dT%H:%M:%SZ")
    cluster.on_get(1, lambda job: cluster.finish(job))
    assert launch() == 0
    assert f"replacing TrainJob {NAME} (of run {other.run})" in launch.text


def test_a_job_that_another_process_took_over_is_not_deleted(cluster: FakeCluster, launch: Launcher) -> None:
    def take(job: Object) -> None:
        job["metadata"]["annotations"][WATCHER] = "another"
        os.kill(os.getpid(), signal.SIGTERM)

    cluster.on_get(2, take)
    with pytest.raises(Cancelled):
        launch()
    assert NAME in cluster.jobs
    assert "goes on under another process of this step" in launch.text


def test_the_head_asks_for_the_queue(cluster: FakeCluster) -> None:
    queued = dataclasses.replace(CLUSTER, queue="training")
    kube = cluster.kube(queued)
    with pytest.raises(StepFailed, match=r"has no queue 'training' of Kueue .*waits for ever"):
        trainjob.check([JOB], queued, RUN, kube=kube)
    trainjob.check([], queued, RUN, kube=kube)  # a pipeline without training jobs
    cluster.queues.add("training")
    trainjob.check([JOB], queued, RUN, kube=kube)
    cluster.refuse("GET", "localqueues", 403, 'User "system:serviceaccount:…" cannot get resource "localqueues"')
    cluster.queues.clear()
    trainjob.check([JOB], queued, RUN, kube=kube)  # who may not ask finds out when the job waits
