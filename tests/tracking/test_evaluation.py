"""What a stage was measured to be able to do arrives in MLflow, behind examples as without them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.entities import Run

from megatron_af.config import Config, StageConfig, TrackingConfig
from megatron_af.tracking.evaluation import log_evaluation, log_few_shot
from megatron_af.tracking.runs import curriculum_spool, stage_spool
from megatron_af.tracking.spool import Address, Spool, read_spool
from megatron_af.tracking.store import open_client

pytestmark = pytest.mark.slow

SUMMARY = {"skills": {"what?": {"audio": 40.0, "n": 5}}, "overall": {"audio": 40.0, "n": 5}}


def measured(folder: Path, right: float) -> None:
    """The results of a data set and of a benchmark as an evaluation leaves them; the first beside the second."""
    (folder / "toy").mkdir(parents=True, exist_ok=True)
    summary = SUMMARY | {"overall": {"audio": right, "n": 5}}
    (folder / "hearing.json").write_text(json.dumps({"test": summary}))
    suite = {"exact": right, "n": 2, "intervals": {"exact": [1.0, 99.0]}}
    (folder / "toy/suite-toy.json").write_text(json.dumps(suite))
    answers = pa.table({"id": ["a"], "group": ["a"], "answer": ["dog"], "score.exact": [1.0]})
    pq.write_table(answers, folder / "toy/suite-toy.parquet")


def run_of(folder: Path, store: str) -> Config:
    """A stage that was trained, and measured behind two examples and three."""
    config = Config(
        name="demo",
        stage="long",
        output=str(folder),
        curriculum={"long": StageConfig(evaluation=("test",), suites=("toy",))},
        tracking=TrackingConfig(uri=store, system_metrics_seconds=0, linger_seconds=60),
    )
    own, parent = config.stage_folder("long"), curriculum_spool(config)
    for shots, right in ((2, 50.0), (3, 60.0)):
        measured(own / f"few_shot/{shots}_from_a+b", right)
    (own / "result.json").write_text('{"step": 7}')
    Spool(parent).open(Address(uri=store, experiment="demo", name="demo"), params={}, tags={}, texts={})
    stage = Spool(stage_spool(config, "long", {"data": "sha256:0"}))
    above = Address(uri=store, experiment="demo", name="long", parent="../../../tracking")
    stage.open(above, params={}, tags={}, texts={})
    return config


def runs(store: str) -> dict[str, Run]:
    client = open_client(store)
    found = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    return {run.info.run_name: run for run in found}


def test_results_behind_examples_arrive(tmp_path: Path, store: str) -> None:
    """Under names that say how many examples and whence, with what MLflow refuses in a name replaced."""
    config = run_of(tmp_path / "runs", store)
    log_few_shot(config, [0, 2, 3], "a+b")
    found = runs(store)
    metrics = found["long"].data.metrics
    assert metrics["few_shot/2_from_a_b/test/overall/audio"] == 50.0
    assert metrics["few_shot/3_from_a_b/test/overall/audio"] == 60.0
    assert metrics["few_shot/2_from_a_b/test/skills/what_/audio"] == 40.0
    assert metrics["few_shot/3_from_a_b/toy/exact"] == 60.0 and not any(name.startswith("test") for name in metrics)
    client = open_client(store)
    history = client.get_metric_history(found["long"].info.run_id, "few_shot/3_from_a_b/toy/exact")
    assert [(one.step, one.value) for one in history] == [(7, 60.0)]
    above = found["demo"].data.metrics
    assert above["long/few_shot/2_from_a_b/test/overall/audio"] == above["long/few_shot/2_from_a_b/toy/exact"] == 50.0
    assert not any("skills" in name for name in above), "totals alone"
    run = found["long"].info.run_id
    for shots in (2, 3):
        at = f"evaluation/few_shot/{shots}_from_a+b"
        names = {file.path.removeprefix(f"{at}/") for file in client.list_artifacts(run, at)}
        assert names == {"test.json", "toy.json", "suite-toy.json", "suite-toy.parquet"}
    table = json.loads(Path(client.download_artifacts(run, "evaluation/few_shot/3_from_a+b/toy.json")).read_text())
    assert table["data"][0][:3] == ["", "exact", 60.0]
    answers = pq.read_table(client.download_artifacts(run, "evaluation/few_shot/2_from_a+b/suite-toy.parquet"))
    assert answers["answer"].to_pylist() == ["dog"]


def test_only_what_was_asked_arrives(tmp_path: Path, store: str) -> None:
    """Of a stage that is measured on a benchmark alone, what lies there of a data set is of another day."""
    config = run_of(tmp_path / "runs", store)
    stage = StageConfig(suites=("toy",))
    log_few_shot(Config(**vars(config) | {"curriculum": {"long": stage}}), [3], "a+b")
    names = [name for name in runs(store)["long"].data.metrics if "few_shot" in name]
    assert names and all("/3_from_a_b/toy/" in name for name in names)


@pytest.mark.parametrize("shots", [[0], [2]])
def test_nothing_is_logged_where_nobody_follows(tmp_path: Path, store: str, shots: list[int]) -> None:
    """No examples were shown: those results are the curriculum's to log; or tracking is off."""
    config = run_of(tmp_path / "runs", store)
    before = len(list(read_spool(curriculum_spool(config))))
    tracking = TrackingConfig(uri=store, enabled=shots == [0])
    log_few_shot(Config(**vars(config) | {"tracking": tracking}), shots, "a+b")
    assert len(list(read_spool(curriculum_spool(config)))) == before
    for folder in config.stage_folder("long").glob("tracking/*"):
        assert [record["kind"] for record, _ in read_spool(folder)] == ["open"]


def test_a_stage_without_a_run_is_let_be(tmp_path: Path, store: str) -> None:
    stages = {"long": StageConfig(evaluation=("test",))}
    tracking = TrackingConfig(uri=store)
    config = Config(name="demo", stage="long", output=str(tmp_path), curriculum=stages, tracking=tracking)
    log_few_shot(config, [2], "train")
    assert not config.stage_folder("long").exists() and not curriculum_spool(config).exists()


def test_a_stages_own_results_are_called_by_their_names(tmp_path: Path, store: str) -> None:
    config = run_of(tmp_path / "runs", store)
    own = config.stage_folder("long")
    (own / "hearing.json").write_text(json.dumps({"test": SUMMARY}))
    (spool,) = (Spool(folder) for folder in own.glob("tracking/*"))
    parent = Spool(curriculum_spool(config))
    log_evaluation(config, "long", spool, parent)
    (logged,) = (record for record, _ in read_spool(spool.folder) if record["kind"] == "evaluation")
    assert logged["values"]["test/overall/audio"] == 40.0 and not any("few" in name for name in logged["values"])
