"""A job as a Kubeflow TrainJob (Trainer v2): the whole mapping from our words to Kubernetes'.

    body = trainjob_manifest(job, cluster, Launch(run="demo-1"))

What belongs to every training job (shared memory, NCCL, failure policy, gang scheduling) stands in the
ClusterTrainingRuntime of ``kubeflow/manifests``; here stands what one job adds to it.
"""

import hashlib
from datetime import UTC, datetime
from typing import Any

from af_pipelines.cluster import ClusterConfig, Placement
from af_pipelines.kube import CONTAINER, GROUP, VERSION, Object
from megatron_af.pipeline.job import Job
from megatron_af.pipeline.records import Launch
from megatron_af.runs.digests import digest_value

MANAGER = "megatron-af/pipelines"
MANAGED_BY = {"app.kubernetes.io/managed-by": "megatron-af"}
RUN, STEP = "megatron-af/run", "megatron-af/step"
"""Labels by which a run finds its jobs again."""
SPEC, ATTEMPT = "megatron-af/spec", "megatron-af/attempt"
HEARTBEAT, WATCHER, PROGRESS = "megatron-af/heartbeat", "megatron-af/watcher", "megatron-af/progress"
"""Annotations: digest of what the job was made from, which attempt made it, when someone last watched it, who, and how
far it was then."""
LONGEST_NAME = 40
"""JobSet appends the node's name and index, and pods must stay below 63 characters."""


def trainjob_manifest(job: Job, cluster: ClusterConfig, run: Launch) -> Object:
    """The TrainJob of a distributed job."""
    placement = cluster.placement(job.step or job.name, stage=True)
    trainer: Object = {
        "image": cluster.image,
        "command": ["python", *job.arguments()],
        "numNodes": job.nodes,
        "numProcPerNode": job.processes,
        "env": environment(cluster),
    }
    if resources := resource_list(placement):
        trainer["resourcesPerNode"] = {"requests": resources, "limits": resources}
    spec: Object = {
        "runtimeRef": {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime", "name": cluster.runtime},
        "activeDeadlineSeconds": round(job.deadline_seconds),
        "trainer": trainer,
    }
    if pod := _pod_patch(cluster, placement):
        node = {"name": CONTAINER, "template": {"spec": {"template": {"spec": pod}}}}
        patch = {"template": {"spec": {"replicatedJobs": [node]}}}
        spec["runtimePatches"] = [{"manager": MANAGER, "trainingRuntimeSpec": patch}]
    labels = {**MANAGED_BY, RUN: run.run, STEP: job.name}
    if cluster.queue:
        labels["kueue.x-k8s.io/queue-name"] = cluster.queue
    if cluster.priority:
        labels["kueue.x-k8s.io/priority-class"] = cluster.priority
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": job_name(job.name, job.owner),
            "namespace": cluster.namespace,
            "labels": labels,
            "annotations": {SPEC: digest_value(spec), ATTEMPT: str(run.attempt), HEARTBEAT: now_text()},
        },
        "spec": spec,
    }


def job_name(step: str, owner: str) -> str:
    """A name that only this step of this run's folder has, with room for what JobSet appends: the API server itself
    then refuses a second job that would write there."""
    tail = hashlib.sha256(f"{owner}/{step}".encode()).hexdigest()[:8]
    readable = "".join(letter if letter.isalnum() else "-" for letter in step.lower())[: LONGEST_NAME - 12].strip("-")
    return f"af-{readable}-{tail}"


def environment(cluster: ClusterConfig) -> list[Object]:
    """Variables of a container: plain values, and secrets by reference."""
    plain = [{"name": name, "value": value} for name, value in sorted(cluster.env.items())]
    secret = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": source.secret, "key": source.key}}}
        for name, source in sorted(cluster.secrets.items())
    ]
    return [*plain, *secret]


def resource_list(placement: Placement) -> dict[str, str]:
    """A node's resources, requests and limits alike: training does not share."""
    wanted = {"cpu": placement.cpu, "memory": placement.memory}
    wanted |= {name: str(count) for name, count in placement.devices.items()}
    return {name: amount for name, amount in wanted.items() if amount}


def now_text() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _pod_patch(cluster: ClusterConfig, placement: Placement) -> Object:
    pod: dict[str, Any] = {}
    if cluster.volumes:
        pod["volumes"] = [
            {"name": f"volume-{index}", "persistentVolumeClaim": {"claimName": volume.claim}}
            for index, volume in enumerate(cluster.volumes)
        ]
        mounts = [
            {"name": f"volume-{index}", "mountPath": volume.mount, "readOnly": volume.read_only}
            for index, volume in enumerate(cluster.volumes)
        ]
        pod["containers"] = [{"name": CONTAINER, "volumeMounts": mounts}]
    if cluster.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in cluster.image_pull_secrets]
    if placement.node_selector:
        pod["nodeSelector"] = dict(placement.node_selector)
    if placement.tolerate:
        pod["tolerations"] = [{"key": key, "operator": "Exists"} for key in placement.tolerate]
    return pod
