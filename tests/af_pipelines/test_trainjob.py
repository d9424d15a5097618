"""The cluster launcher's whole life, through the real Kubernetes client, against an HTTP server in this process."""

import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kubeflow_trainer_api import models

from af_pipelines import trainjob
from af_pipelines.cluster import ClusterConfig, Placement, SecretKey, Volume
from af_pipelines.cluster_run import reap_jobs
from af_pipelines.job import Cancelled, Job, StepFailed
from af_pipelines.kube import ClusterAway, ClusterError
from af_pipelines.manifest import ATTEMPT, HEARTBEAT, job_name, trainjob_manifest
from af_pipelines.records import Launch
from tests.af_pipelines.fake_cluster import FakeCluster, Object

RUN = Launch(run="20260101-000000-ab12")
ARGV = ("tools/pretrain_af.py", "--config", "/runs/config.yaml", "stage=align")
JOB = Job(name="align", argv=ARGV, nodes=2, processes=8)
NAME = job_name("align", RUN.run)
CLUSTER = ClusterConfig(away_minutes=0.02, pending_minutes=0.005)
PACE = trainjob.Pace(poll_seconds=0.02, hopeless_seconds=0.1)


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
        return trainjob.launch_trainjob(job, settings, run, self.said.append, kube=kube, pace=PACE)

    @property
    def text(self) -> str:
        return "\n".join(self.said)


@pytest.fixture
def launch(cluster: FakeCluster) -> Launcher:
    return Launcher(cluster)


def pod_name(index: int, restart: int = 0) -> str:
    return f"{NAME}-node-0-{index}-r{restart}"


def test_runs_to_completion_with_logs_and_progress(cluster: FakeCluster, launch: Launcher) -> None:
    def start(job: Object) -> None:
        cluster.run_pods(job)
        cluster.print(pod_name(0), "loading", "step 1/3 | loss 2.5 | eta 0:02")
        cluster.print(pod_name(1), "step 1/3 | loss 2.5 | eta 0:02")

    def advance(job: Object) -> None:
        cluster.print(pod_name(0), "step 2/3 | loss 2.0 | eta 0:01")
        job["status"] = {"trainerStatus": {"progressPercentage": 66, "estimatedRemainingSeconds": 1}}

    cluster.on_get(1, start)
    cluster.on_get(2, advance)
    cluster.on_get(4, lambda job: cluster.finish(job))
    assert launch() == 0
    assert launch.said == [
        f"[align] created TrainJob {NAME} in namespace megatron-af",
        "[align] 0 of 2 nodes running; 0 of 2 pods exist",
        "[align 0] loading",
        "[align 0] step 1/3 | loss 2.5 | eta 0:02",
        "[align 1] step 1/3 | loss 2.5 | eta 0:02",
        "[align] 2 of 2 nodes running",
        "[align 0] step 2/3 | loss 2.0 | eta 0:01",
        "[align] 2 of 2 nodes running, 66%, 1 s left",
    ]
    assert NAME in cluster.jobs, "a finished job stays for kubectl describe"
    assert cluster.jobs[NAME]["metadata"]["annotations"][HEARTBEAT]


def test_restart_of_the_whole_job_is_told_with_its_reason(cluster: FakeCluster, launch: Launcher) -> None:
    def start(job: Object) -> None:
        cluster.run_pods(job)
        cluster.print(pod_name(0), "step 1/3", "[rank0]: ValueError: loss is not finite")

    def restart(job: Object) -> None:
        cluster.run_pods(job, restart=1)
        cluster.print(pod_name(0, 1), "step 2/3")

    cluster.on_get(0, start)
    cluster.on_get(2, restart)
    cluster.on_get(4, lambda job: cluster.finish(job))
    assert launch() == 1
    assert "[align] restart 1: ValueError: loss is not finite" in launch.said
    assert "[align 0] step 2/3" in launch.said


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


def test_busy_server_is_asked_again(cluster: FakeCluster, launch: Launcher) -> None:
    cluster.refuse("POST", "trainjobs", 429, "too many requests", retry_after="0.2")
    cluster.refuse("GET", "pods", 503, "etcd leader changed", times=2)
    cluster.on_get(1, lambda job: cluster.finish(job))
    began = time.monotonic()
    assert launch() == 0
    assert time.monotonic() - began >= 0.2, "Retry-After is kept"


def test_server_that_is_away_for_a_while(cluster: FakeCluster, launch: Launcher) -> None:
    cluster.on_get(0, lambda job: cluster.go_away(3))
    cluster.on_get(2, lambda job: cluster.finish(job))
    assert launch() == 0


def test_server_that_stays_away_leaves_the_job_to_the_retry(cluster: FakeCluster, launch: Launcher) -> None:
    cluster.on_get(0, lambda job: cluster.go_away(10_000))
    with pytest.raises(ClusterAway, match=r"has not answered for 0\.02 minutes.*the training job goes on") as failure:
        launch()
    assert not failure.value.give_up
    assert NAME in cluster.jobs
    cluster.go_away(0)
    cluster.on_get(2, lambda job: cluster.finish(job))
    assert launch() == 0
    assert "goes on with TrainJob" in launch.text


@pytest.mark.parametrize(
    ("status", "message", "words"),
    [
        (401, "Unauthorized", "its token has expired or is wrong (Unauthorized): log in again"),
        (403, 'User "x" cannot create resource "trainjobs"', "apply kubeflow/manifests/base/namespaced/rbac.yaml"),
        (403, "exceeded quota: gpus, requested: 16, limited: 8", "the quota in namespace megatron-af is used up"),
        (404, 'namespaces "megatron-af" not found', "there is no namespace 'megatron-af'"),
        (404, "404 page not found", "does not know TrainJobs (404 page not found): install Kubeflow Trainer"),
        (
            403,
            'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: spec.RuntimeRef: Invalid '
            "value: specified clusterTrainingRuntime must be created before the TrainJob is created",
            "has no training runtime 'megatron-af'",
        ),
        (422, "spec.trainer.numNodes: Invalid value", "the cluster answers 422"),
    ],
)
def test_refusals_name_cause_and_next_step(
    cluster: FakeCluster, launch: Launcher, status: int, message: str, words: str
) -> None:
    cluster.refuse("POST", "trainjobs", status, message)
    with pytest.raises(ClusterError) as failure:
        launch()
    assert words in str(failure.value)
    assert failure.value.give_up
    assert not cluster.jobs


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("ImagePullBackOff", "image af:1 cannot be pulled"),
        ("CreateContainerConfigError", "container cannot start (CreateContainerConfigError: secret not found)"),
    ],
)
def test_pods_that_can_never_start_end_the_job(cluster: FakeCluster, launch: Launcher, reason: str, words: str) -> None:
    waiting = {"waiting": {"reason": reason, "message": "secret not found"}}
    cluster.on_get(0, lambda job: cluster.run_pods(job, phase="Pending", state=waiting))
    with pytest.raises(StepFailed) as failure:
        launch()
    assert words in str(failure.value)
    assert failure.value.give_up
    assert NAME not in cluster.jobs, "nothing is left running"


def test_image_that_comes_after_all(cluster: FakeCluster, launch: Launcher) -> None:
    waiting = {"waiting": {"reason": "ErrImagePull", "message": "registry is busy"}}
    cluster.on_get(0, lambda job: cluster.run_pods(job, phase="Pending", state=waiting))
    cluster.on_get(1, lambda job: cluster.run_pods(job))
    cluster.on_get(3, lambda job: cluster.finish(job))
    assert launch() == 0
    assert any("registry is busy" in line for line in launch.said)


def test_no_room_is_waited_for_but_not_for_ever(cluster: FakeCluster, launch: Launcher) -> None:
    why = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "4 Insufficient gpu"}
    cluster.on_get(0, lambda job: cluster.run_pods(job, phase="Pending", conditions=[why]))
    with pytest.raises(StepFailed, match=r"could not start: no room for .*: 4 Insufficient gpu"):
        launch()
    assert NAME not in cluster.jobs


def test_quota_that_keeps_pods_from_existing(cluster: FakeCluster, launch: Launcher) -> None:
    warning = "Error creating: pods is forbidden: exceeded quota: gpus, requested: 8, used: 8, limited: 8"
    cluster.on_get(0, lambda job: cluster.warn(f"{NAME}-node-0", "FailedCreate", warning))
    with pytest.raises(StepFailed, match=r"0 of 2 pods exist: FailedCreate: .*raise the namespace's quota"):
        launch()
    assert NAME not in cluster.jobs


def test_a_queued_job_may_wait_as_long_as_the_queue_takes(cluster: FakeCluster, launch: Launcher) -> None:
    queued = {"conditions": [{"type": "Suspended", "status": "True", "reason": "Suspended"}]}
    cluster.on_get(0, lambda job: job.update(status=queued))
    cluster.on_get(30, lambda job: cluster.finish(job))  # pending_minutes have long passed
    assert launch() == 0
    assert "[align] waiting in the queue to be admitted" in launch.said


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


def test_reaper_and_end_of_run(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kubeconfig").write_text(cluster.kubeconfig())
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    now = datetime.now(UTC)

    def add(step: str, *, minutes: float, ended: bool = False) -> str:
        body = trainjob_manifest(Job(name=step, argv=ARGV), CLUSTER, RUN)
        then = (now - timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")
        body["metadata"]["annotations"][HEARTBEAT] = then
        if ended:
            cluster.finish(body)
            body["status"]["conditions"][0]["lastTransitionTime"] = then
        cluster.jobs[body["metadata"]["name"]] = body
        return str(body["metadata"]["name"])

    orphan, watched = add("orphan", minutes=45), add("watched", minutes=2)
    old, recent = add("old", minutes=8 * 24 * 60, ended=True), add("recent", minutes=60, ended=True)
    assert reap_jobs(CLUSTER) == 0
    assert set(cluster.jobs) == {watched, recent}
    assert f"deleted {orphan}: lost its pipeline 0.8 h ago" in (out := capsys.readouterr().out)
    assert f"deleted {old}: ended (Complete) 192.0 h ago" in out

    trainjob.delete_run(CLUSTER, RUN.run)
    assert set(cluster.jobs) == {recent}


def test_manifest_fits_the_published_model() -> None:
    cluster = ClusterConfig(
        queue="gpus",
        priority="high",
        image_pull_secrets=("registry",),
        volumes=(Volume(claim="af-data", mount="/data", read_only=True), Volume(claim="af-runs", mount="/runs")),
        env={"NCCL_DEBUG": "WARN"},
        secrets={"MLFLOW_TRACKING_PASSWORD": SecretKey(secret="mlflow", key="password")},
        stages=Placement(
            nodes=2, processes=8, cpu="64", memory="512Gi", devices={"nvidia.com/gpu": 8, "rdma/hca": 8},
            node_selector={"pool": "h100"}, tolerate=("nvidia.com/gpu",),
        ),
    )  # fmt: skip
    body = trainjob_manifest(JOB, cluster, RUN)
    model = models.TrainerV1alpha1TrainJob.from_dict(body)
    assert model is not None
    assert model.to_dict() == body, "the model knows every field and loses none"
    assert body["spec"]["trainer"]["command"][:3] == ["python", "-m", "af_pipelines.node"]
    assert "password" not in str(body).replace("'key': 'password'", "").lower().replace("mlflow_tracking_password", "")


def test_names_are_distinct_and_leave_room() -> None:
    names = {job_name(step, run) for step in ("align", "Align_2", "a" * 80) for run in ("r1", "r2")}
    assert len(names) == 6
    assert all(len(name) <= 40 and name[0].isalpha() and name == name.lower() and "_" not in name for name in names)
