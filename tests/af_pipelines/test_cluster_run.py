"""A submitted run from outside: what the reaper deletes."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from af_pipelines import trainjob
from af_pipelines.cluster_run import reap_jobs
from af_pipelines.manifest import HEARTBEAT, trainjob_manifest
from megatron_af.pipeline.job import Job
from tests.af_pipelines.fake_cluster import FakeCluster
from tests.af_pipelines.launcher import ARGV, CLUSTER, RUN


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

    orphan, watched = add("orphan", minutes=145), add("watched", minutes=100)
    old, recent = add("old", minutes=8 * 24 * 60, ended=True), add("recent", minutes=60, ended=True)
    cluster.refuse("DELETE", "trainjobs", 403, 'admission webhook "rules" denied the request: not by you')
    assert reap_jobs(CLUSTER) == 1, "one is refused, and the other goes"
    assert len(cluster.jobs) == 3 and {watched, recent} < set(cluster.jobs)
    told = capsys.readouterr()
    assert "cannot delete" in told.err and "denied the request" in told.err
    assert reap_jobs(CLUSTER) == 0
    assert set(cluster.jobs) == {watched, recent}
    out = told.out + capsys.readouterr().out
    assert f"deleted {orphan}: lost its pipeline 2.4 h ago" in out
    assert f"deleted {old}: ended (Complete) 192.0 h ago" in out

    trainjob.delete_run(CLUSTER, RUN.run)
    assert set(cluster.jobs) == {recent}
