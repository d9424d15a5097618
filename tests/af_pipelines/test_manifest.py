"""The TrainJob fits Trainer's published model."""


from kubeflow_trainer_api import models

from af_pipelines.cluster import ClusterConfig, Placement, SecretKey, Volume
from af_pipelines.manifest import job_name, trainjob_manifest
from tests.af_pipelines.launcher import JOB, RUN


def test_manifest_fits_the_published_model() -> None:
    cluster = ClusterConfig(
        queue="gpus",
        priority="high",
        image_pull_secrets=("registry",),
        volumes=(Volume(claim="af-data", mount="/data", read_only=True), Volume(claim="af-runs", mount="/runs")),
        env={"NCCL_DEBUG": "WARN"},
        secrets={"MLFLOW_TRACKING_PASSWORD": SecretKey(secret="mlflow", key="password")},
        stages=Placement(
            nodes=2, processes=8, cpu="64", memory="512Gi", devices={"nvidia.com/gpu": 8, "rdma/hca": 8},
            node_selector={"pool": "h100"}, tolerate=("nvidia.com/gpu",),
        ),
    )  # fmt: skip
    body = trainjob_manifest(JOB, cluster, RUN)
    model = models.TrainerV1alpha1TrainJob.from_dict(body)
    assert model is not None
    assert model.to_dict() == body, "the model knows every field and loses none"
    assert body["spec"]["trainer"]["command"][:3] == ["python", "-m", "megatron_af.pipeline.torchrun"]
    assert "password" not in str(body).replace("'key': 'password'", "").lower().replace("mlflow_tracking_password", "")


def test_names_are_distinct_and_leave_room() -> None:
    names = {job_name(step, run) for step in ("align", "Align_2", "a" * 80) for run in ("r1", "r2")}
    assert len(names) == 6
    assert all(len(name) <= 40 and name[0].isalpha() and name == name.lower() and "_" not in name for name in names)
