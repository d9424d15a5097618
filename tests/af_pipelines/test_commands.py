"""The cluster's side of the commands, against a server that speaks both APIs: submit, status, logs, cancel, resume."""

import fcntl
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from af_pipelines.__main__ import main
from af_pipelines.cluster import load_cluster
from af_pipelines.endpoint import Endpoint
from af_pipelines.manifest import PROGRESS, trainjob_manifest
from megatron_af.config.as_json import to_json
from megatron_af.config.loading import load_config
from megatron_af.pipeline.job import Job
from megatron_af.pipeline.records import Launch, RunFolder, RunRecord
from tests.af_pipelines.fake_cluster import FakeCluster, Object

pytestmark = pytest.mark.slow

CONFIG = """
name: toy
output: {tmp}/runs
data: {{datasets: {{text: {{manifest: text.jsonl}}}}}}
curriculum:
  align: {{trainable: [added_rows], blend: {{text: 1}}}}
  four_shot: {{trainable: [added_rows], blend: {{text: 1}}}}
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCluster]:
    with FakeCluster() as fake:
        (tmp_path / "kubeconfig").write_text(fake.kubeconfig())
        (tmp_path / "toy.yaml").write_text(CONFIG.format(tmp=tmp_path))
        (tmp_path / "cluster.yaml").write_text(
            "env: {A: b}\nsecrets: {MLFLOW_TRACKING_PASSWORD: {secret: login, key: password}}\n"
            "overrides: [output=/runs, data.root=/data]\n"
            "volumes: [{claim: af-data, mount: /data}, {claim: af-runs, mount: /runs}]\n"
        )
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", fake.url)
        monkeypatch.setenv("AF_PIPELINES_TOKEN", "let-me-in")
        yield fake


def pipelines(tmp_path: Path, verb: str, *more: str) -> int:
    return main([verb, "--config", str(tmp_path / "toy.yaml"), *more])


def submit(tmp_path: Path) -> int:
    return pipelines(tmp_path, "submit", "--cluster", str(tmp_path / "cluster.yaml"))


def test_a_file_on_no_volume_is_refused_before_anything_is_sent(
    cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ("--cluster", str(tmp_path / "cluster.yaml"), "curriculum.align.entry.lm=checkpoints/qwen/step_00000000")
    assert pipelines(tmp_path, "submit", *here) == 2
    assert "curriculum.align.entry.lm = checkpoints/qwen/step_00000000: on no volume" in capsys.readouterr().err
    assert not cluster.runs


def test_from_submit_to_cancel(cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(tmp_path) == 0
    (sent,) = cluster.runs.values()
    assert f"{cluster.url}/#/runs/details/run-1" in capsys.readouterr().out
    parameters = sent["runtime_config"]["parameters"]
    assert json.loads(parameters["config"])["output"] == "/runs", "where the cluster mounts its volume"
    assert sent["service_account"] == "af-pipeline"
    assert "let-me-in" not in json.dumps(sent), "a login is never part of a pipeline"
    assert any(headers.get("authorization") == "Bearer let-me-in" for headers in cluster.headers)

    record = RunFolder(load_config(tmp_path / "toy.yaml")).run()
    assert record is not None and record.kubeflow_run == "run-1"
    settings = load_cluster(str(tmp_path / "cluster.yaml"))
    body = trainjob_manifest(Job(name="align", argv=("x",), nodes=2), settings, record.launch)
    body["metadata"]["annotations"][PROGRESS] = "step 1/3, loss 2.5, 1,200 tok/s, eta 0:02"
    cluster.jobs[body["metadata"]["name"]] = body
    cluster.run_pods(body)
    details = [{"display_name": "prepare", "state": "SUCCEEDED"}, {"display_name": "align", "state": "RUNNING"}]
    details += [{"display_name": "four-shot", "state": "SKIPPED"}]  # as Kubeflow writes it
    sent["run_details"] = {"task_details": details}
    assert pipelines(tmp_path, "status") == 0
    shown = capsys.readouterr().out
    assert "prepare              succeeded" in shown
    assert "four_shot            skipped" in shown
    assert "promote              waiting" in shown
    assert "2 of 2 nodes running; step 1/3, loss 2.5, 1,200 tok/s, eta 0:02" in shown

    name = "toy-system-container-impl-1"
    cluster.pods.append({"metadata": {"name": name, "uid": name, "labels": {"pipeline/runid": "run-1"}}, "status": {}})
    cluster.print(name, "[KFP] noise", "[align 0] step 1/3", "[prepare] done", "time=now level=info argo")
    sent["state"] = "SUCCEEDED"
    assert pipelines(tmp_path, "logs", "--step", "align", "--follow") == 0
    assert capsys.readouterr().out == "[align 0] step 1/3\n"

    sent["state"] = "RUNNING"
    assert pipelines(tmp_path, "cancel") == 0
    assert cluster.runs["run-1"]["state"] == "CANCELED"
    assert not cluster.jobs and "is being terminated" in capsys.readouterr().out

    cluster.jobs[body["metadata"]["name"]] = body  # its exit handler could not delete it
    cluster.refuse("POST", "runs/run-1:terminate", 400, "Failed to terminate run run-1. Row not found.")
    assert pipelines(tmp_path, "cancel") == 0
    assert not cluster.jobs and "has ended already" in capsys.readouterr().out

    assert pipelines(tmp_path, "resume") == 0
    again = cluster.runs["run-2"]["runtime_config"]["parameters"]
    assert again["attempt"] == 2
    assert again["run"] == parameters["run"], "the same run goes on, so its finished steps are found"


def test_what_a_pipeline_server_refuses(
    cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.refuse("POST", "runs", 401, "token expired")
    assert submit(tmp_path) == 1
    assert "refuses the login (token expired): renew the token" in capsys.readouterr().err
    cluster.refuse("POST", "runs", 500, "database is locked")
    assert submit(tmp_path) == 1
    assert "answers 500" in capsys.readouterr().err
    assert not (tmp_path / "runs/toy/pipeline/run.json").exists(), "nothing was started"
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://127.0.0.1:9")
    assert submit(tmp_path) == 1
    assert "nothing answers at http://127.0.0.1:9" in capsys.readouterr().err
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    assert submit(tmp_path) == 1
    assert "set `endpoint` in the cluster file or KF_PIPELINES_ENDPOINT" in capsys.readouterr().err


@pytest.mark.parametrize("redirect", [True, False])
def test_a_login_page_is_no_success(
    cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], redirect: bool
) -> None:
    assert submit(tmp_path) == 0
    cluster.runs["run-1"]["state"] = "SUCCEEDED"
    before = RunFolder(load_config(tmp_path / "toy.yaml")).run()
    cluster.log_in_first(redirect=redirect)
    assert submit(tmp_path) == 1
    assert "a login page answers at" in capsys.readouterr().err
    assert RunFolder(load_config(tmp_path / "toy.yaml")).run() == before, "the last run stays known"
    assert len(cluster.runs) == 1


def test_a_token_file_that_is_not_there(
    cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert submit(tmp_path) == 1
    assert "KF_PIPELINES_SA_TOKEN_PATH names" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["submit", "resume"])
def test_one_run_at_a_time(cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    def again() -> int:
        return submit(tmp_path) if verb == "submit" else pipelines(tmp_path, "resume")

    assert submit(tmp_path) == 0
    assert again() == 1
    assert "of this configuration is running at" in capsys.readouterr().err
    assert len(cluster.runs) == 1
    cluster.runs["run-1"]["state"] = "FAILED"
    assert again() == 0
    cluster.runs.clear()  # the server's administrator deleted it
    assert again() == 0


def test_a_run_is_submitted_by_one_process_at_a_time(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submitted(endpoint: Endpoint, pipeline: Path, name: str, parameters: dict[str, str]) -> str:
        with (pipeline.parent / "lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return "run-1"

    monkeypatch.setattr(Endpoint, "submit", submitted)
    assert submit(tmp_path) == 0


def test_without_a_kubeconfig(
    cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert submit(tmp_path) == 0
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    assert pipelines(tmp_path, "status") == 0
    assert "training jobs cannot be shown: no Kubernetes cluster is configured" in capsys.readouterr().out
    assert pipelines(tmp_path, "logs") == 2, "another try would fail the same way"
    assert "set KUBECONFIG" in capsys.readouterr().err


def test_compile_writes_a_file_that_can_be_uploaded(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(CONFIG.format(tmp=tmp_path))
    out = tmp_path / "out.yaml"
    assert pipelines(tmp_path, "compile", "curriculum.align.micro_batch_samples=8", "--output", str(out)) == 0
    pipeline = next(yaml.safe_load_all(out.read_text()))
    assert pipeline["pipelineInfo"]["name"] == "curriculum-toy"


def test_smoke_measures_between_two_nodes(
    cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(job: Object) -> None:
        cluster.run_pods(job)
        cluster.print(f"{job['metadata']['name']}-node-0-0-r0", "256 MiB 2.000 ms 134.22 GB/s bus")
        cluster.finish(job)

    cluster.on_get(0, run)
    assert main(["smoke", "--cluster", str(tmp_path / "cluster.yaml"), "cluster.stages.processes=8"]) == 0
    (job,) = cluster.jobs.values()
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 8)
    assert trainer["command"][-1] == "tools/measure_network.py"
    assert "[smoke 0] 256 MiB 2.000 ms 134.22 GB/s bus" in capsys.readouterr().out


def test_a_run_of_another_machine_is_told_of_and_no_process_of_this_one_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder lies on a volume that both see, and a process here has the driver's number."""
    (tmp_path / "toy.yaml").write_text(CONFIG.format(tmp=tmp_path))
    settings = load_config(tmp_path / "toy.yaml")
    with subprocess.Popen(["sleep", "600"]) as stranger:
        record = RunRecord(launch=Launch(run="r-1"), config=to_json(settings), pid=stranger.pid, host="node-7")
        RunFolder(settings).write_run(record)
        try:
            assert pipelines(tmp_path, "cancel") == 1
            assert "r-1 was started on node-7, not here: cancel it there" in capsys.readouterr().err
            assert pipelines(tmp_path, "status") == 0
            assert "curriculum r-1: on node-7, started" in capsys.readouterr().out
            assert stranger.poll() is None
        finally:
            stranger.kill()
