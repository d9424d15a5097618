"""What a job's runs say of it before any MLflow code runs: places, parameters, tags, and who sends them."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_af.config import Config, ConfigError, StageConfig, TrackingConfig
from megatron_af.runs.records import StageRecord
from megatron_af.tracking import runs
from megatron_af.tracking.runs import curriculum_spool, stage_spool, start_curriculum_run, start_stage_run, tracking_uri


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, Any]]]:
    """Processes that would have been started."""
    started: list[tuple[list[str], dict[str, Any]]] = []

    def popen(command: list[str], **settings: Any) -> Any:
        started.append((command, settings))
        return SimpleNamespace(stdin=SimpleNamespace(close=lambda: started.append((["closed"], {}))))

    monkeypatch.setattr(runs.subprocess, "Popen", popen)
    monkeypatch.setattr(runs, "provenance_tags", lambda gpus="": {"hardware.gpu": gpus})
    monkeypatch.setattr(runs, "stage_inputs", lambda config, stage: {"data": f"sha256:{config.seed}"})
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return started


def config(folder: Path) -> Config:
    return Config(
        name="demo",
        output=str(folder),
        curriculum={"align": StageConfig(steps=7), "tune": StageConfig()},
        stage="align",
        tracking=TrackingConfig(linger_seconds=3, system_metrics_seconds=0),
    )


def run_file(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def test_a_stage_whose_files_were_moved_goes_on_in_its_run(tmp_path: Path, sent: list[Any]) -> None:
    settings = config(tmp_path)
    StageRecord(inputs={"data": "sha256:0"}).save(settings.stage_folder("align"))
    first = start_stage_run(settings, gpus="", world_size=1).spool.folder
    assert start_stage_run(replace(settings, seed=7), gpus="", world_size=1).spool.folder == first  # as claim recorded


def test_a_stage_is_a_run_below_the_curriculums(tmp_path: Path, sent: list[Any]) -> None:
    settings = config(tmp_path)
    run = start_stage_run(settings, gpus="8 x H100", world_size=8)
    folder, parent = run.spool.folder, curriculum_spool(settings)
    assert parent == tmp_path / "demo/tracking" and folder.parent == tmp_path / "demo/align/tracking"
    address = run_file(folder)
    assert (address["name"], address["experiment"]) == ("align", "demo")
    assert (folder / address["parent"]).resolve() == parent
    assert run_file(parent)["name"] == "demo"
    text = (folder / "spool.jsonl").read_text()
    assert '"stage.steps":"7"' in text and '"hardware.gpu":"8 x H100"' in text and '"digest.data":"sha256:0"' in text
    assert '"world_size":"8"' in text and "curriculum.align" not in text


def test_other_inputs_are_another_run_and_the_same_ones_the_same(tmp_path: Path) -> None:
    settings = config(tmp_path)
    places = {stage_spool(settings, "align", inputs) for inputs in ({"a": "1"}, {"a": "2"}, {"a": "1"})}
    assert len(places) == 2 and all(len(place.name) == 12 for place in places)


@pytest.mark.parametrize("alone", [True, False])
def test_an_experiment_has_the_name_that_was_asked_for(tmp_path: Path, sent: list[Any], alone: bool) -> None:
    settings = config(tmp_path)
    settings = replace(settings, tracking=replace(settings.tracking, experiment="shared", alone=alone))
    run = start_stage_run(settings, gpus="", world_size=1)
    for folder in (run.spool.folder, curriculum_spool(settings)):
        assert run_file(folder)["experiment"] == "shared"
    assert run_file(run.spool.folder)["ends_parent"] == alone


def test_the_sender_outlives_the_job_and_is_no_rank_of_it(
    tmp_path: Path, sent: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("MLFLOW_RUN_ID", "outer")
    run = start_curriculum_run(config(tmp_path))
    assert run_file(run.spool.folder)["adopt"] == "outer"
    (command, settings), *_ = sent
    assert command[1:3] == ["-m", runs.SENDER] and [float(number) for number in command[5:]] == [3, 0]
    assert command[3:5] == [str(run.spool.folder), run.spool.session]
    assert settings["start_new_session"]
    assert not {"RANK", "WORLD_SIZE", "MLFLOW_RUN_ID"} & settings["env"].keys()
    assert settings["env"]["PYTHONPATH"].split(os.pathsep)[0] == str(Path(runs.__file__).parents[2])
    run.end("FINISHED", "done")
    assert sent[-1] == (["closed"], {})


def test_the_address_comes_from_the_key_the_environment_or_beside_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(settings) == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    for folder in ("really?", "50%41"):
        with pytest.raises(ConfigError, match=r"output = \S+: MLflow reads '(\?|%41)' in \S+ as a part of an address"):
            tracking_uri(replace(settings, output=str(tmp_path / folder)))
    assert tracking_uri(replace(settings, output="/my 100% #1")) == "sqlite:////my 100% #1/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:5000")
    assert tracking_uri(replace(settings, output="really?")) == "http://team:5000"
    assert tracking_uri(settings) == "http://team:5000"
    named = replace(settings, tracking=replace(settings.tracking, uri="http://own:5000"))
    assert tracking_uri(named) == "http://own:5000"


def test_without_tracking_the_spool_is_written_and_nobody_sends_it(tmp_path: Path, sent: list[Any]) -> None:
    settings = config(tmp_path)
    run = start_stage_run(replace(settings, tracking=replace(settings.tracking, enabled=False)), gpus="", world_size=1)
    run.spool.metrics(1, {"loss": 2.0})
    run.end("FINISHED", "done")
    assert run.wait(0) and sent == []
    kinds = [json.loads(line)["kind"] for line in run.spool.file.read_text().splitlines()]
    assert kinds == ["open", "metrics", "close"]
