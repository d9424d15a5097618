"""A refusal names its cause and the next step, whichever of the kinds of 403 it is."""


import pytest

from af_pipelines.kube import ClusterError
from tests.af_pipelines.fake_cluster import FakeCluster
from tests.af_pipelines.launcher import Launcher


@pytest.mark.parametrize(
    ("status", "message", "words"),
    [
        (403, 'User "x" cannot create resource "trainjobs"', "apply kubeflow/manifests/base/namespaced/rbac.yaml"),
        (403, "exceeded quota: gpus, requested: 16, limited: 8", "the quota in namespace megatron-af is used up"),
        (404, 'namespaces "megatron-af" not found', "there is no namespace 'megatron-af'"),
        (404, "404 page not found", "does not know TrainJobs of this version (404 page not found): install"),
        (
            403,
            'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: spec.RuntimeRef: Invalid '
            "value: specified clusterTrainingRuntime must be created before the TrainJob is created",
            "has no training runtime 'megatron-af-v1'",
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
    ("case", "words", "never"),
    [
        ("create-403-admission-policy", "a rule of this cluster forbids the job", "rbac"),
        ("create-422-admission-policy", "images must come from registry.corp", "rbac"),
        ("create-webhook-denial-reserved-env", "a rule of this cluster forbids the job", "rbac"),
        ("create-webhook-denial-runtime-missing", "has no training runtime 'megatron-af-v1'", "rbac"),
        ("quota-403-trainjob-create", "the quota in namespace megatron-af is used up", "rbac"),
        ("create-403-namespace-missing-as-account", "namespace 'megatron-af' or Kubeflow Trainer does not exist", ""),
        ("auth-403-anonymous", "the cluster sees no login at all", "rbac"),
        ("create-404-namespace", "there is no namespace 'megatron-af'", "rbac"),
        ("create-404-no-such-version", "install Kubeflow Trainer 2.2 or later", "rbac"),
    ],
)
def test_what_a_real_control_plane_refuses(
    cluster: FakeCluster, launch: Launcher, case: str, words: str, never: str
) -> None:
    cluster.answer_as("POST", "trainjobs", case)
    with pytest.raises(ClusterError) as failure:
        launch()
    assert words in str(failure.value)
    assert not never or never not in str(failure.value)
