"""What a cluster serves: the champion, exchanged by a rolling update, and remembered over `unserve`."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from af_pipelines import serving
from af_pipelines.__main__ import main
from megatron_af.pipeline.job import StepFailed
from megatron_af.serve.settings import load_settings
from megatron_af.tracking.store import open_client
from tests.af_pipelines.fake_cluster import FakeCluster
from tests.af_pipelines.launcher import CLUSTER

pytestmark = pytest.mark.slow

COMPONENT = Path(__file__).parents[2] / "kubeflow/manifests/components/serving"
SERVER, SERVICE = COMPONENT / "namespaced/server.yaml", COMPONENT / "kserve/namespaced/inference-service.yaml"


CONFIG = Path(__file__).parents[2] / "configs/serving/default.yaml"


@pytest.fixture
def spec(cluster: FakeCluster) -> dict[str, Any]:
    """Of the Deployment as it is applied; the API server fills in what it leaves out."""
    body = next(body for body in yaml.safe_load_all(SERVER.read_text()) if body["kind"] == "Deployment")
    cluster.deployments["af-serving"] = body | {"spec": body["spec"] | {"replicas": 1}}
    return dict(cluster.deployments["af-serving"])["spec"]


def served(spec: dict[str, Any]) -> dict[str, str]:
    return dict(spec["template"]["metadata"].get("annotations", {}))


def test_from_the_first_champion_to_the_end(
    cluster: FakeCluster, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kube = cluster.kube(CLUSTER)
    assert "no model is named yet" in serving.roll_out(kube)
    assert "http://af-serving:8080/v1" in serving.serve(kube, "af2")
    assert served(spec) == {"megatron-af/model": "af2"}
    champions: list[str | None] = [None, "6", "6", "7", "6"]
    monkeypatch.setattr(serving, "champion", lambda model: champions.pop(0))
    said = [serving.roll_out(kube) for _ in range(5)]
    assert said == [
        "af2 has no champion yet; version none stays",
        "rolling out af2 6 in the place of none",
        "af2 6 is the champion and served",
        "rolling out af2 7 in the place of 6",
        "rolling out af2 6 in the place of 7",
    ]
    assert served(spec) == {"megatron-af/model": "af2", "megatron-af/version": "6"}
    serving.unserve(kube)
    assert spec["replicas"] == 0 and served(spec)["megatron-af/version"] == "6"
    serving.serve(kube, "af2")
    assert spec["replicas"] == 1 and served(spec)["megatron-af/version"] == "6", "what was served is served again"
    spec["replicas"] = 3
    serving.serve(kube, "other")
    assert served(spec) == {"megatron-af/model": "other"}, "no version of another model"
    assert spec["replicas"] == 3, "the autoscaler's"


def test_the_pods_serve_what_their_annotations_say(spec: dict[str, Any]) -> None:
    (container,) = spec["template"]["spec"]["containers"]
    fields = {variable["name"]: variable.get("valueFrom", {}).get("fieldRef") for variable in container["env"]}
    for variable, annotation in (("MODEL", serving.MODEL), ("VERSION", serving.VERSION)):
        assert fields[variable] == {"fieldPath": f"metadata.annotations['{annotation}']"}
    command = container["command"][2].splitlines()[-1]
    assert command.startswith('exec python tools/serve.py "models:/$MODEL/$VERSION" name="$MODEL" ')
    load_settings(CONFIG, shlex.split(command)[4:])


def test_without_the_component_it_says_what_to_apply(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kubeconfig").write_text(cluster.kubeconfig())
    (tmp_path / "cluster.yaml").write_text("{}\n")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    assert main(["unserve", "--cluster", str(tmp_path / "cluster.yaml")]) == 2
    assert "has no Deployment and no InferenceService af-serving: add components/serving" in capsys.readouterr().err


def test_the_champion_is_the_registrys(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert serving.champion("af2") is None
    client = open_client(store)
    client.create_registered_model("af2")
    client.create_model_version("af2", "s3://releases/af2")
    assert serving.champion("af2") is None
    client.set_registered_model_alias("af2", "champion", "1")
    assert serving.champion("af2") == "1"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(StepFailed, match="MLFLOW_TRACKING_URI is not set"):
        serving.champion("af2")


def test_an_inference_service_follows_the_champion_as_well(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = yaml.safe_load(SERVICE.read_text())
    cluster.services = {"af-serving": service}
    kube, predictor = cluster.kube(CLUSTER), service["spec"]["predictor"]
    assert "no model is named yet" in serving.roll_out(kube)
    assert "http://af-serving-predictor/v1" in serving.serve(kube, "af2")
    monkeypatch.setattr(serving, "champion", lambda model: "6")
    assert serving.roll_out(kube) == "rolling out af2 6 in the place of none"
    assert predictor["annotations"] == {serving.MODEL: "af2", serving.VERSION: "6"}
    serving.unserve(kube)
    assert service["metadata"]["annotations"][serving.STOP] == "true"
    serving.serve(kube, "af2")
    assert serving.STOP not in service["metadata"]["annotations"]
    assert predictor["annotations"][serving.VERSION] == "6", "what was served is served again"
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
    serving.serve(kube, "other")
    assert predictor["annotations"] == {serving.MODEL: "other"}, "no version of another model"


def test_without_rights_on_inference_services_the_deployment_is_found(
    cluster: FakeCluster, spec: dict[str, Any]
) -> None:
    cluster.refuse("GET", "inferenceservices", 403, "cannot get resource")
    assert "http://af-serving:8080/v1" in serving.serve(cluster.kube(CLUSTER), "af2")


def test_a_rollback_is_rolled_out(
    cluster: FakeCluster,
    spec: dict[str, Any],
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    (tmp_path / "kubeconfig").write_text(cluster.kubeconfig())
    (tmp_path / "cluster.yaml").write_text("{}\n")
    (tmp_path / "af2.yaml").write_text("name: af2\n")
    asked = ["rollback", "--config", str(tmp_path / "af2.yaml"), "--why", "slow"]
    there = ["--cluster", str(tmp_path / "cluster.yaml")]
    client = open_client(store)
    client.create_registered_model("af2")
    for _ in range(2):
        client.create_model_version("af2", "s3://releases/af2")
    client.set_registered_model_alias("af2", "champion", "2")
    assert main(asked) == 2
    assert "af2 has no previous-champion to go back to" in capsys.readouterr().err
    client.set_registered_model_alias("af2", "previous-champion", "1")
    serving.serve(cluster.kube(CLUSTER), "af2")
    assert main([*asked, *there]) == 0
    assert capsys.readouterr().out == (
        "version 1 is the champion again, instead of 2\nrolling out af2 1 in the place of none\n"
    )
    assert served(spec) == {"megatron-af/model": "af2", "megatron-af/version": "1"}
    assert serving.champion("af2") == "1"
