"""A cluster that is not there, not configured or wrongly described is told in one finding."""

from pathlib import Path
from typing import Any

import pytest

from af_pipelines import reach as module
from af_pipelines.kube import ClusterAway, Kube
from af_pipelines.reach import reach
from megatron_af.doctor.findings import State

CLUSTER = str(Path(__file__).parents[2] / "configs" / "cluster" / "cpu.yaml")


def test_no_cluster_is_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    found = reach(CLUSTER)
    assert found.state is State.BROKEN and "no Kubernetes cluster is configured" in found.told


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("namspace: x\n")
    found = reach(str(tmp_path / "c.yaml"))
    assert found.state is State.BROKEN and "namspace" in found.told and "c.yaml" in found.fix


class Answers:
    namespace = "training"

    def __init__(self, jobs: Any) -> None:
        self._jobs = jobs

    def jobs(self, selector: str) -> Any:
        if isinstance(self._jobs, Exception):
            raise self._jobs
        return self._jobs


def test_what_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.Kube is Kube
    monkeypatch.setattr(Kube, "connect", lambda cluster: Answers([{}, {}]))
    assert reach(CLUSTER).told.startswith("answers; 2 TrainJobs in the namespace ")
    monkeypatch.setattr(Kube, "connect", lambda cluster: Answers(ClusterAway("no answer for 60 s")))
    assert reach(CLUSTER).state is State.BROKEN and reach(CLUSTER).told == "no answer for 60 s"
