"""The pipeline server: its address and login, and every refusal as one sentence with what to do."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kfp_server_api
import pytest
import urllib3

from af_pipelines import endpoint
from af_pipelines.cluster import ClusterConfig
from af_pipelines.endpoint import Endpoint, EndpointError

CLUSTER = ClusterConfig(endpoint="http://kfp:8080", namespace="audio")
HEALTHY = SimpleNamespace(status=200, headers={"Content-Type": "application/json"})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH", "AF_PIPELINES_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    found: dict[str, Any] = {"answer": HEALTHY, "run": None}

    def get_run(run_id: str) -> Any:
        if isinstance(found["run"], Exception):
            raise found["run"]
        return found["run"]

    def request(method: str, url: str, **settings: Any) -> Any:
        found.update(url=url, headers=settings["headers"])
        if isinstance(found["answer"], Exception):
            raise found["answer"]
        return found["answer"]

    monkeypatch.setattr(endpoint.urllib3, "request", request)
    monkeypatch.setattr(
        endpoint, "Client", lambda **settings: found.update(settings) or SimpleNamespace(get_run=get_run)
    )
    return found


def test_a_token_comes_from_its_file_or_the_environment(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Endpoint.connect(CLUSTER)
    assert asked["existing_token"] is None and asked["headers"] == {}
    monkeypatch.setenv("AF_PIPELINES_TOKEN", "plain")
    Endpoint.connect(CLUSTER)
    assert asked["existing_token"] == "plain" and asked["headers"] == {"Authorization": "Bearer plain"}
    (tmp_path / "token").write_text("from-file\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    Endpoint.connect(CLUSTER)
    assert (asked["existing_token"], asked["namespace"]) == ("from-file", "audio")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(EndpointError, match=r"none, which cannot be read \(No such file"):
        Endpoint.connect(CLUSTER)


@pytest.mark.parametrize(
    ("status", "headers", "told"),
    [
        (302, {"Location": "http://dex"}, "a redirect to http://dex"),
        (200, {"Content-Type": "text/html"}, "text/html"),
        (200, {}, "no content type"),
    ],
)
def test_a_login_page_is_no_pipeline_server(
    asked: dict[str, Any], status: int, headers: dict[str, str], told: str
) -> None:
    asked["answer"] = SimpleNamespace(status=status, headers=headers)
    with pytest.raises(EndpointError, match=f"a login page answers at http://kfp:8080 .{told}"):
        Endpoint.connect(CLUSTER)


def test_a_server_that_is_not_there_is_said_so(asked: dict[str, Any]) -> None:
    asked["answer"] = urllib3.exceptions.HTTPError("refused")
    with pytest.raises(EndpointError, match=r"nothing answers at http://kfp:8080 \(refused\): check the address"):
        Endpoint.connect(CLUSTER)


def test_a_state_is_told_or_the_run_is_gone(asked: dict[str, Any]) -> None:
    server = Endpoint.connect(CLUSTER)
    asked["run"] = SimpleNamespace(state="RUNNING", run_details=None)
    assert server.state("1") == "RUNNING" and server.tasks("1") == {}
    asked["run"] = SimpleNamespace(
        state=None, run_details=SimpleNamespace(task_details=[SimpleNamespace(display_name="a")])
    )
    assert server.state("1") == "PENDING" and list(server.tasks("1")) == ["a"]
    asked["run"] = kfp_server_api.ApiException(status=404, reason="Not Found")
    assert server.state_if_known("1") is None
    asked["run"] = kfp_server_api.ApiException(status=403, reason="Forbidden")
    with pytest.raises(EndpointError, match=r"refuses the login .*namespace audio") as refused:
        server.state_if_known("1")
    assert refused.value.status == 403
    asked["run"] = kfp_server_api.ApiException(status=500, reason="Oops")
    with pytest.raises(EndpointError, match="answers 500 Oops"):
        server.state("1")
