"""What is applied to a cluster, checked without one: every overlay renders and fits the published schemas.

Core kinds are checked against Kubernetes' own schemas, the training runtime and the JobSet in it against the models
that Kubeflow Trainer publishes. Kueue publishes no schema as a package; its objects are only checked for their scope.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models

from af_pipelines.__main__ import _parser
from af_pipelines.cluster import ClusterConfig, load_cluster
from af_pipelines.kube import CONTAINER
from af_pipelines.trainjob import DELETE_SECONDS
from megatron_af.pipeline.job import GIVE_UP
from megatron_af.runs.digests import digest_value
from tests.af_pipelines.fake_cluster import RECORDED

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
OVERLAYS = sorted(path.parent.name for path in (ROOT / "kubeflow/manifests/overlays").glob("*/kustomization.yaml"))
CORE = ("v1", "apps/v1", "batch/v1", "rbac.authorization.k8s.io/v1", "networking.k8s.io/v1")
CLUSTER_SCOPED = (
    "Namespace", "ClusterTrainingRuntime", "ClusterQueue", "ResourceFlavor", "WorkloadPriorityClass",
)  # fmt: skip
Object = dict[str, Any]


@cache
def render(overlay: str) -> tuple[Object, ...]:
    kubectl = Path(sys.executable).with_name("kubectl")
    command = [str(kubectl), "kustomize", str(ROOT / "kubeflow/manifests/overlays" / overlay)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return tuple(yaml.safe_load_all(text))


def only(overlay: str, kind: str, name: str = "megatron-af") -> Object:
    (found,) = (body for body in render(overlay) if body["kind"] == kind and body["metadata"]["name"] == name)
    return found


def training_runtime(overlay: str) -> Object:
    return only(overlay, "ClusterTrainingRuntime", ClusterConfig().runtime)


def pod_specs(overlay: str) -> list[Object]:
    specs = []
    for body in render(overlay):
        if body["kind"] in ("Deployment", "StatefulSet", "Job"):
            specs.append(body["spec"]["template"]["spec"])
        elif body["kind"] == "CronJob":
            specs.append(body["spec"]["jobTemplate"]["spec"]["template"]["spec"])
        elif body["kind"] == "ClusterTrainingRuntime":
            jobs = body["spec"]["template"]["spec"]["replicatedJobs"]
            specs += [job["template"]["spec"]["template"]["spec"] for job in jobs]
    return specs


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_core_kinds_fit_kubernetes_schemas(overlay: str) -> None:
    checked = [body for body in render(overlay) if body["apiVersion"] in CORE]
    assert len(checked) >= 15
    for body in checked:
        kubernetes_validate.validate(body, "1.37", strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_runtime_fits_trainer_and_jobset(overlay: str) -> None:
    runtime = training_runtime(overlay)
    model = models.TrainerV1alpha1ClusterTrainingRuntime.from_dict(runtime)
    assert model is not None
    assert model.to_dict() == runtime, "the models know every field and lose none"
    jobset = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "spec": runtime["spec"]["template"]["spec"]}
    assert models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset  # type: ignore[union-attr]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_failures_mean_what_the_launcher_says(overlay: str) -> None:
    spec = training_runtime(overlay)["spec"]["template"]["spec"]
    (job,) = spec["replicatedJobs"]
    lost, gave_up = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert gave_up["onExitCodes"] == {"containerName": CONTAINER, "operator": "In", "values": list(GIVE_UP)}
    assert lost["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert job["template"]["spec"]["backoffLimit"] == 0
    assert job["template"]["spec"]["template"]["spec"]["restartPolicy"] == "Never", "a pod failure policy needs it"
    assert [rule["action"] for rule in spec["failurePolicy"]["rules"]] == [
        "RestartJobSetAndIgnoreMaxRestarts", "FailJobSet",
    ]  # fmt: skip
    assert "ttlSecondsAfterFinished" not in spec, "a failed job would be made again"
    grace = job["template"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace < DELETE_SECONDS, "a deleted job is waited for until its pods have written their checkpoint"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_scope(overlay: str) -> None:
    for body in render(overlay):
        expected = None if body["kind"] in CLUSTER_SCOPED else "megatron-af"
        assert body["metadata"].get("namespace") == expected, body["kind"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_secret_and_no_root(overlay: str) -> None:
    assert not [body for body in render(overlay) if body["kind"] == "Secret"], "secrets are only referred to"
    hand_over = only(overlay, "Job", "af-volumes")["spec"]["template"]["spec"]
    for spec in pod_specs(overlay):
        assert spec["securityContext"].get("runAsNonRoot") is (True if spec != hand_over else None)
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            own = re.fullmatch(r"megatron-af:(cpu|gpu)", container["image"])
            assert own or re.search(r":\d[\w.-]*@sha256:[0-9a-f]{64}$", container["image"]), container["image"]
            for variable in container.get("env", []):
                if any(word in variable["name"] for word in ("PASSWORD", "SECRET", "TOKEN")):
                    assert "valueFrom" in variable, variable["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pipelines_account_may_do_what_it_does_and_no_more(overlay: str) -> None:
    expected = {  # the calls of kube.py
        ("trainer.kubeflow.org", "trainjobs", ""): {"create", "get", "list", "delete", "patch"},
        ("", "pods", ""): {"list"},
        ("", "events", ""): {"list"},
        ("", "pods/log", ""): {"get"},
    }
    # Argo's executor, and KFP's driver and launcher.
    expected |= {("argoproj.io", "workflowtaskresults", ""): {"create", "patch"}}
    for case in ("rbac-403-configmap", "rbac-403-secret"):
        refused = json.loads((RECORDED / f"{case}.json").read_text())["body"]["details"]
        expected |= {("", refused["kind"], refused["name"]): {"get"}}
    if overlay == "gpu":  # Kube.has_queue
        expected |= {("kueue.x-k8s.io", "localqueues", ""): {"get"}}
    assert rights_of(overlay, "af-pipeline") == expected
    assert not [body for body in render(overlay) if body["kind"].startswith("ClusterRole")]


def rights_of(overlay: str, account: str) -> dict[tuple[str, str, str], set[str]]:
    """(API group, resource, name or empty for all) -> verbs that the bindings give a service account."""
    rights = dict[tuple[str, str, str], set[str]]()
    for binding in (body for body in render(overlay) if body["kind"] == "RoleBinding"):
        if {"kind": "ServiceAccount", "name": account, "namespace": "megatron-af"} not in binding["subjects"]:
            continue
        for rule in only(overlay, "Role", binding["roleRef"]["name"])["rules"]:
            for key in itertools.product(rule["apiGroups"], rule["resources"], rule.get("resourceNames", [""])):
                rights.setdefault(key, set()).update(rule["verbs"])
    return rights


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_multi_user_pipelines_look_after_the_namespace(overlay: str) -> None:
    assert only(overlay, "Namespace")["metadata"]["labels"]["pipelines.kubeflow.org/enabled"] == "true"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_cluster_file_and_manifests_name_the_same_things(overlay: str) -> None:
    cluster = load_cluster(str(ROOT / f"configs/cluster/{overlay}.yaml"))
    assert only(overlay, "Namespace", cluster.namespace)
    assert only(overlay, "ServiceAccount", cluster.service_account)
    assert only(overlay, "ClusterTrainingRuntime", cluster.runtime)
    for volume in cluster.volumes:
        claim = only(overlay, "PersistentVolumeClaim", volume.claim)
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"], "all nodes of a job mount it"
    if cluster.queue:
        kueue = [body["apiVersion"] for body in render(overlay) if body["apiVersion"].startswith("kueue.x-k8s.io/")]
        assert set(kueue) == {"kueue.x-k8s.io/v1beta2"}, "of the older versions the API server warns"
        assert only(overlay, "LocalQueue", cluster.queue)
        assert only(overlay, "WorkloadPriorityClass", cluster.priority)
        (group,) = only(overlay, "ClusterQueue")["spec"]["resourceGroups"]
        asked = {"cpu", "memory", *cluster.stages.devices}
        assert asked <= set(group["coveredResources"]), "Kueue admits nothing that a queue does not cover"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_volumes_are_handed_to_the_user_that_everything_runs_as(overlay: str, tmp_path: Path) -> None:
    body = only(overlay, "Job", "af-volumes")
    pod = body["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (node,) = training_runtime(overlay)["spec"]["template"]["spec"]["replicatedJobs"]
    user = node["template"]["spec"]["template"]["spec"]["securityContext"]
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
    mounted = {claims[mount["name"]]: mount["mountPath"] for mount in container["volumeMounts"]}
    cluster = load_cluster(str(ROOT / f"configs/cluster/{overlay}.yaml"))
    assert mounted == {volume.claim: volume.mount for volume in cluster.volumes}
    shell, flags, script = container["command"]
    for mount in mounted.values():  # the same commands on folders of our own
        (tmp_path / mount.strip("/")).mkdir(mode=0o700)
        script = script.replace(mount, str(tmp_path / mount.strip("/")))
    script = script.replace(f"{user['runAsUser']}:{user['runAsGroup']}", f"{os.getuid()}:{os.getgid()}")
    subprocess.run([shell, flags, script], check=True, capture_output=True)
    for mount in mounted.values():
        assert (tmp_path / mount.strip("/")).stat().st_mode & 0o7777 == 0o2775, "its group writes, and files inherit it"
    assert str(user["fsGroup"]) in container["command"][2], "and the kubelet finds nothing to change"
    assert "ttlSecondsAfterFinished" in body["spec"], "a job's image cannot be changed, only made anew"


def test_gpu_overlay() -> None:
    (node,) = training_runtime("gpu")["spec"]["template"]["spec"]["replicatedJobs"]
    spec = node["template"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, "one would do nothing for this user"
    assert {"name": "NCCL_IB_HCA", "value": "mlx5"} in container["env"]
    memory = next(volume for volume in spec["volumes"] if volume["name"] == "shared-memory")
    assert memory["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Gi"}
    (server,) = only("gpu", "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    store = next(variable for variable in server["env"] if variable["name"] == "BACKEND_STORE_URI")
    assert store.keys() == {"name", "valueFrom"}
    assert store["valueFrom"] == {"secretKeyRef": {"name": "mlflow-postgres", "key": "uri"}}


def render_with(component: str, tmp_path: Path) -> list[Object]:
    """The base with one component more."""
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    # kustomize reads only relative paths, so the tree is made to lie beside the overlay.
    (tmp_path / "manifests").symlink_to(ROOT / "kubeflow/manifests")
    (overlay / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        f"resources: [../manifests/base]\ncomponents: [../manifests/components/{component}]\n"
    )
    kubectl = Path(sys.executable).with_name("kubectl")
    command = [str(kubectl), "kustomize", "--load-restrictor=LoadRestrictionsNone", str(overlay)]
    return list(yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def test_second_network_component(tmp_path: Path) -> None:
    (runtime,) = (body for body in render_with("second-network", tmp_path) if body["kind"] == "ClusterTrainingRuntime")
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    annotations = node["template"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {"k8s.v1.cni.cncf.io/networks": "rdma"}
    assert models.TrainerV1alpha1ClusterTrainingRuntime.from_dict(runtime).to_dict() == runtime  # type: ignore[union-attr]


IMMUTABLE = {
    "megatron-af-v1": {
        "cpu": "sha256:0851eae56255bf3a51c8a4bee004cca1245a6b506582505a91337c9c447fdb85",
        "gpu": "sha256:356b0638b896c806baed8e62981ef9e0c433250bc2c804223d339ddcc8f51ad5",
    }
}
"""Runtime -> overlay -> digest of the part that an API server lets nobody change
(tests/fixtures/kubernetes: runtime-422-immutable-failure-policy)."""


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_another_failure_policy_is_another_runtime(overlay: str) -> None:
    runtime = training_runtime(overlay)
    digest = digest_value(runtime["spec"]["template"]["spec"]["failurePolicy"])
    assert digest == IMMUTABLE[runtime["metadata"]["name"]][overlay], (
        "the API server refuses this under the old name: give the runtime the next version (runtime.yaml, the "
        "components that patch it, ClusterConfig.runtime) and record its digest here"
    )


def test_gang_scheduling_component(tmp_path: Path) -> None:
    (runtime,) = (body for body in render_with("gang-scheduling", tmp_path) if body["kind"] == "ClusterTrainingRuntime")
    assert runtime["spec"]["podGroupPolicy"] == {"coscheduling": {"scheduleTimeoutSeconds": 600}}
    assert models.TrainerV1alpha1ClusterTrainingRuntime.from_dict(runtime).to_dict() == runtime  # type: ignore[union-attr]


def test_serving_component(tmp_path: Path) -> None:
    mine = [body for body in render_with("serving", tmp_path) if body["metadata"]["name"] in SERVING]
    assert len(mine) == 8
    for body in mine:
        kubernetes_validate.validate(body, "1.37", strict=True)
        assert body["metadata"]["namespace"] == "megatron-af"
    bodies = {(body["kind"], body["metadata"]["name"]): body for body in mine}
    server = bodies["Deployment", "af-serving"]["spec"]
    assert "replicas" not in server, "the next apply would undo what serve, unserve and the autoscaler set"
    assert server["strategy"]["rollingUpdate"]["maxUnavailable"] == 0, "the old pods answer until a new one is ready"
    (container,) = server["template"]["spec"]["containers"]
    probes = [container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")]
    assert [probe["httpGet"] for probe in probes] == [{"path": "/health", "port": "http"}] * 3
    assert probes[0]["periodSeconds"] * probes[0]["failureThreshold"] >= server["progressDeadlineSeconds"]
    job = bodies["CronJob", "af-roll-out"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    for pod in (server["template"]["spec"], job):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["containers"][0]["image"] == "megatron-af:cpu"
        assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    for rule in bodies["Role", "af-roll-out"]["rules"]:
        assert rule["resourceNames"] == ["af-serving"] and rule["verbs"] == ["get", "patch"]
    _parser().parse_args(job["containers"][0]["args"][2:])


def test_the_inference_service_is_the_same_server(tmp_path: Path) -> None:
    """KServe publishes no schema as a package: its fields beside a pod's are those of its ComponentExtensionSpec."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "kserve").mkdir()
    rendered = render_with("serving", tmp_path / "plain")
    plain = {body["kind"]: body for body in rendered if body["metadata"]["name"] in SERVING}
    mine = [body for body in render_with("serving/kserve", tmp_path / "kserve") if body["metadata"]["name"] in SERVING]
    assert sorted(body["kind"] for body in mine) == [
        "CronJob", "InferenceService", "NetworkPolicy", "Role", "RoleBinding", "ServiceAccount",
    ]  # fmt: skip
    (service,) = (body for body in mine if body["kind"] == "InferenceService")
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    assert service["metadata"]["namespace"] == "megatron-af"
    predictor = service["spec"]["predictor"]
    extension = {
        "minReplicas": 1, "maxReplicas": 4, "scaleMetric": "cpu", "scaleTarget": 70,
        "labels": {"app.kubernetes.io/name": "af-serving"},
        "deploymentStrategy": {"type": "RollingUpdate", **plain["Deployment"]["spec"]["strategy"]},
    }  # fmt: skip
    assert {key: value for key, value in predictor.items() if key in extension} == extension
    pod = {key: value for key, value in predictor.items() if key not in extension}
    assert pod["containers"][0]["name"] == "kserve-container"
    assert "annotations" not in predictor, "the next apply would undo what serve and roll-out set"
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod}, "1.37", strict=True
    )
    pod["containers"][0]["name"] = "server"
    assert pod == plain["Deployment"]["spec"]["template"]["spec"]
    scaling = plain["HorizontalPodAutoscaler"]["spec"]
    assert (scaling["minReplicas"], scaling["maxReplicas"]) == (1, 4)
    assert scaling["metrics"][0]["resource"]["target"]["averageUtilization"] == extension["scaleTarget"]
    policy = plain["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    assert policy == extension["labels"], "one policy for both"


SERVING = ("af-serving", "af-roll-out", "serving-from-ingress")
