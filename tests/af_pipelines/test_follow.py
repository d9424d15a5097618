"""What the cluster shows of a job: logs, nodes, why it waits."""

from types import SimpleNamespace

import pytest

from af_pipelines import trainjob
from af_pipelines.follow import LogReader
from af_pipelines.manifest import HEARTBEAT, PROGRESS
from megatron_af.pipeline.job import StepFailed
from tests.af_pipelines.fake_cluster import FakeCluster, Object
from tests.af_pipelines.launcher import CLUSTER, NAME, Launcher, pod_name

pytestmark = pytest.mark.slow


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


def test_the_heartbeat_says_how_far_the_job_is(cluster: FakeCluster, launch: Launcher) -> None:
    def start(job: Object) -> None:
        cluster.run_pods(job)
        cluster.print(pod_name(0), "step 1/3 33.3% | loss 2.5 | tok/s 1,200 | eta 0:02")

    cluster.on_get(0, start)
    cluster.on_get(round(trainjob.HEARTBEAT_SECONDS / trainjob.POLL_SECONDS), lambda job: cluster.finish(job))
    assert launch() == 0
    assert cluster.jobs[NAME]["metadata"]["annotations"][PROGRESS] == "step 1/3, loss 2.5, 1,200 tok/s, eta 0:02"


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


def test_a_pod_that_never_starts_on_its_node_ends_the_job(cluster: FakeCluster, launch: Launcher) -> None:
    """Its volume cannot be attached: it has a node, holds its GPUs, and is still ContainerCreating."""

    def start(job: Object) -> None:
        cluster.run_pods(job)
        creating = {"waiting": {"reason": "ContainerCreating"}}
        cluster.pods[1] = cluster.pod(NAME, 1, phase="Pending", state=creating)
        cluster.warn(pod_name(1), "FailedMount", 'MountVolume.SetUp failed for volume "volume-0": timed out')
        cluster.warn(pod_name(0), "Unhealthy", "of another pod")

    cluster.on_get(0, start)
    cluster.on_get(100, lambda job: cluster.finish(job))  # pending_minutes have long passed
    with pytest.raises(StepFailed, match=r"not start: af-.*-node-0-1-r0 has not started: FailedMount: .*timed out"):
        launch()
    assert NAME not in cluster.jobs


def test_a_pod_that_a_queue_holds_may_wait(cluster: FakeCluster, launch: Launcher) -> None:
    gated = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "by Kueue"}
    cluster.on_get(0, lambda job: cluster.run_pods(job, phase="Pending", conditions=[gated]))
    cluster.on_get(100, lambda job: cluster.finish(job))
    assert launch() == 0


def test_quota_that_keeps_pods_from_existing(cluster: FakeCluster, launch: Launcher) -> None:
    warning = "Error creating: pods is forbidden: exceeded quota: gpus, requested: 8, used: 8, limited: 8"
    cluster.on_get(0, lambda job: cluster.warn(f"{NAME}-node-0", "FailedCreate", warning))
    with pytest.raises(StepFailed, match=r"0 of 2 pods exist: FailedCreate: .*raise the namespace's quota"):
        launch()
    assert NAME not in cluster.jobs


def test_pods_that_went_and_are_not_made_again_are_no_running_ones(cluster: FakeCluster, launch: Launcher) -> None:
    def lose(job: Object) -> None:
        cluster.pods = []
        cluster.warn(f"{NAME}-node-0", "FailedCreate", "Error creating: pods is forbidden: exceeded quota: gpus")

    cluster.on_get(0, cluster.run_pods)
    cluster.on_get(2, lose)
    cluster.on_get(100, lambda job: cluster.finish(job))  # pending_minutes have long passed
    with pytest.raises(StepFailed, match=r"0 of 2 pods exist: FailedCreate"):
        launch()
    assert launch.said[-1].startswith("[align] 0 of 2 nodes running; 0 of 2 pods exist")
    assert NAME not in cluster.jobs


def test_a_queued_job_may_wait_as_long_as_the_queue_takes(cluster: FakeCluster, launch: Launcher) -> None:
    queued = {"conditions": [{"type": "Suspended", "status": "True", "reason": "Suspended"}]}
    cluster.on_get(0, lambda job: job.update(status=queued))
    cluster.on_get(30, lambda job: cluster.finish(job))  # pending_minutes have long passed
    assert launch() == 0
    assert "[align] waiting in the queue to be admitted" in launch.said


@pytest.mark.parametrize("case", ["log-500-kubelet-unreachable", "log-500-kubelet-internal-error", "log-404-pod"])
def test_a_node_without_logs_does_not_hold_up_the_watch(cluster: FakeCluster, launch: Launcher, case: str) -> None:
    cluster.answer_as("GET", "/log", case, times=10_000)
    cluster.on_get(0, cluster.run_pods)
    cluster.on_get(3, lambda job: cluster.finish(job))
    assert launch() == 0
    logs = [place for place, request in enumerate(cluster.requests) if request.endswith("/log")]
    beat = next(place for place, request in enumerate(cluster.requests) if request.startswith("PATCH"))
    assert beat < logs[0], "the heartbeat comes first"
    assert len(logs) <= 8, "one try for each of two nodes and each look"


def test_an_error_is_told_of_the_node_it_happened_on(cluster: FakeCluster, launch: Launcher) -> None:
    def fail(job: Object) -> None:
        ended = {"exitCode": 1, "reason": "Error", "finishedAt": "2026-01-01T00:00:01Z", "message": "OSError: full\n"}
        cluster.pods = [cluster.pod(NAME, 1, phase="Failed", state={"terminated": ended})]  # node 0's pod has gone
        cluster.print(pod_name(1), "step 1/3")
        cluster.finish(job, "Failed", "ReachedMaxRestarts", "")

    cluster.on_get(0, fail)
    with pytest.raises(StepFailed, match="node 1 exit code 1: OSError: full"):
        launch()
    assert "[align 1] step 1/3" in launch.said


def test_warnings_of_an_earlier_job_of_the_same_name_are_not_shown(cluster: FakeCluster, launch: Launcher) -> None:
    cluster.warn(f"{NAME}-node-0", "FailedCreate", "exceeded quota: of yesterday", when="2026-01-01T00:00:00.5Z")
    cluster.on_get(0, lambda job: cluster.warn(NAME, "TrainJobResourcesCreationFailed", "failed calling mjobset.kb.io"))
    cluster.on_get(3, lambda job: cluster.finish(job))
    assert launch() == 0
    assert "of yesterday" not in launch.text
    assert "mjobset.kb.io" in launch.text


def test_a_pod_behind_a_scheduling_gate_waits_as_long_as_it_takes(cluster: FakeCluster, launch: Launcher) -> None:
    gate = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "gates"}
    cluster.on_get(0, lambda job: cluster.run_pods(job, phase="Pending", conditions=[gate]))
    cluster.on_get(30, lambda job: cluster.finish(job))  # pending_minutes have long passed
    assert launch() == 0


def test_no_line_is_lost_or_told_twice_where_stamps_are_the_same_or_out_of_order(cluster: FakeCluster) -> None:
    """CRI-O stamps what was written at once with one time: a whole traceback has it."""
    log = cluster.logs.setdefault(pod_name(0), [])
    reader, pod = LogReader(cluster.kube(CLUSTER), "node"), SimpleNamespace(metadata=SimpleNamespace())
    pod.metadata.name = pod.metadata.uid = pod_name(0)

    def print_at(second: int, *lines: str) -> list[str]:
        log.extend(f"2026-01-01T00:00:{second:02d}.000000000Z {line}" for line in lines)
        return reader.new_lines(pod)

    assert print_at(5, "Traceback", "  File", "ValueError: a", "ValueError: a") == log_text(log)
    assert print_at(5) == []
    assert print_at(5, "  more of it") == ["  more of it"]
    log.append("2026-01-01T00:00:09.000000000Z of stderr")
    assert print_at(8, "of stdout", "of stdout too") == ["of stderr", "of stdout", "of stdout too"]
    assert print_at(9, "later") == ["later"] and print_at(9) == []


def log_text(log: list[str]) -> list[str]:
    return [line.partition(" ")[2] for line in log]
