"""What a cluster serves: the champion, exchanged by a rolling update, and remembered over `unserve`."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from af_pipelines import serving
from af_pipelines.__main__ import main
from megatron_af.pipeline.job import StepFailed
from megatron_af.tracking.store import open_client
from tests.af_pipelines.fake_cluster import FakeCluster
from tests.af_pipelines.launcher import CLUSTER

SERVER = Path(__file__).parents[2] / "kubeflow/manifests/components/serving/namespaced/server.yaml"


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
    assert "http://af-serving:8080/invocations" in serving.serve(kube, "af2")
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
    assert 'models serve --model-uri "models:/$MODEL/$VERSION"' in container["command"][2]


def test_without_the_component_it_says_what_to_apply(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kubeconfig").write_text(cluster.kubeconfig())
    (tmp_path / "cluster.yaml").write_text("{}\n")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    assert main(["unserve", "--cluster", str(tmp_path / "cluster.yaml")]) == 1
    assert "has no Deployment af-serving: add components/serving" in capsys.readouterr().err


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
