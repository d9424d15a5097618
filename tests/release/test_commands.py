"""tools/promote.py from a run's configuration to its exit code."""

import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode

from megatron_af.config import Config, DataConfig, DatasetConfig, RegistryConfig, StageConfig, TrackingConfig
from megatron_af.config.loading import to_yaml
from megatron_af.release import commands
from megatron_af.runs.digests import digest_file, recorded_digest
from megatron_af.runs.paths import LATEST, MANIFEST, latest
from megatron_af.runs.results import bind_results
from megatron_af.tracking.runs import curriculum_spool, stage_spool
from megatron_af.tracking.spool import Address, Spool
from megatron_af.tracking.store import open_client

type Promote = Callable[..., int]


@pytest.fixture
def config(tmp_path: Path, store: str) -> Config:
    gates = tmp_path / "gates.yaml"
    gates.write_text(
        "gates:\n"
        "  hears: {metric: test/overall/audio, over: test/overall/exchanged, min: 20}\n"
        "  no_worse: {score: right}\n"
        "  answers: {answer_seconds: 5}\n"
    )
    config = Config(
        name="demo",
        output=str(tmp_path / "runs"),
        data=DataConfig(root=str(tmp_path), datasets={"scenes": DatasetConfig(manifest="scenes.jsonl")}),
        curriculum={
            "pretrain": StageConfig(),
            "align": StageConfig(blend={"scenes": 1.0}),
            "long": StageConfig(entry={"all": "align"}),
        },
        tracking=TrackingConfig(uri=store),
        registry=RegistryConfig(gates=str(gates)),
    )
    (tmp_path / "scenes.jsonl").write_text("{}\n")
    write_checkpoint(config, "align", "align")
    train(config, "first", gap=30)
    return config


def write_checkpoint(config: Config, stage: str, weights: str) -> None:
    folder = config.stage_folder(stage)
    checkpoint = folder / "checkpoints" / f"step_{len(list(folder.rglob('step_*'))):08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / MANIFEST).write_text(json.dumps({"resume": {"step": 1}, "parts": {"lm": "."}}))
    (checkpoint / "weights").write_text(weights)
    (checkpoint.parent / LATEST).write_text(checkpoint.name)


def train(config: Config, weights: str, gap: int) -> None:
    """What training and evaluation leave in the last stage's folder."""
    folder = config.stage_folder("long")
    write_checkpoint(config, "long", weights)
    scores = {"overall": {"audio": 30 + gap, "exchanged": 30}}
    (folder / "hearing.json").write_text(json.dumps({"test": scores}))
    lines = [json.dumps({"id": str(i), "right": int(i % 100 < 30 + gap)}) for i in range(100)]
    (folder / "answers.jsonl").write_text("\n".join(lines))
    bind_results(replace(config, stage="long"), [folder / "hearing.json", folder / "answers.jsonl"])


@pytest.fixture
def promote(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Promote:
    """Run tools/promote.py; the served model is taken to answer in a tenth of a second."""
    monkeypatch.setattr(commands, "try_loading", lambda uri, source: (0.1, ""))
    spec = importlib.util.spec_from_file_location("promote", Path(__file__).parents[2] / "tools/promote.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config))

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["promote.py", arguments[0], "--config", str(file), *arguments[1:]])
        code: int = tool.main()
        return code

    return run


@pytest.mark.slow
def test_a_release_from_registration_to_rollback(
    promote: Promote, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promote("register") == 0
    assert promote("register") == 0, "a pipeline's step may run twice"
    assert promote("promote", "--why", "first") == 0
    assert "version 1 is the champion" in capsys.readouterr().out

    train(config, "second", gap=10)
    assert promote("register") == 0
    assert promote("gate") == 42
    assert "REFUSED  hears: test/overall/audio - test/overall/exchanged = 10, expected at least 20: short by 10" in (
        capsys.readouterr().out
    )
    assert promote("promote") == 42
    assert "REFUSED  no_worse" in capsys.readouterr().err

    train(config, "third", gap=40)
    assert promote("register") == 0
    assert promote("promote") == 0
    assert promote("rollback", "--why", "too slow") == 0
    capsys.readouterr()
    assert promote("show") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["3", "–"], ["2", "–"], ["1", "champion"]]


def test_results_of_other_rows_are_not_registered(
    promote: Promote, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = replace(config.curriculum["long"], evaluation=("scenes",))
    train(replace(config, curriculum={**config.curriculum, "long": long}), "second", gap=30)
    asks = "curriculum.long.evaluation=[scenes]"
    assert promote("register", asks) == 0
    (tmp_path / "scenes.jsonl").write_text("{}\n{}\n")
    assert promote("register", asks) == 2
    assert re.search(r"measured on scenes \(sha256:.*: measure the stage again", capsys.readouterr().err)


def test_a_version_carries_its_model_and_lineage(promote: Promote, config: Config, tmp_path: Path) -> None:
    promote("register")
    client = open_client(config.tracking.uri)
    version = client.get_model_version_by_alias("demo", "candidate")
    assert version.tags["stage"] == "long" and version.tags["config_digest"].startswith("sha256:")
    assert version.tags["digest.parent/all"] == recorded_digest(latest(config.stage_folder("align") / "checkpoints"))
    assert json.loads(version.tags["lineage.align"])["data/scenes"] == digest_file(tmp_path / "scenes.jsonl")
    model = Path(client.download_artifacts(version.run_id, "model"))
    (mlmodel,) = model.rglob("MLmodel")
    assert "max_new_tokens" in mlmodel.read_text() and "digest: sha256:" in mlmodel.read_text()
    assert sum(file.stat().st_size for file in model.rglob("*")) < 200_000, "no weights"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_run_of_another_store_is_not_looked_for_in_this_one(
    promote: Promote, config: Config, tmp_path: Path, elsewhere: bool
) -> None:
    uri = f"sqlite:///{tmp_path / 'gone' / 'other.db'}" if elsewhere else config.tracking.uri
    parent, stage = curriculum_spool(config), stage_spool(config, "long", {})
    Spool(parent).open(Address(uri=uri, experiment="demo", name="demo"), params={}, tags={}, texts={})
    address = Address(uri=uri, experiment="demo", name="long", parent=os.path.relpath(parent, stage))
    Spool(stage).open(address, params={}, tags={}, texts={})
    assert promote("register") == 0
    client = open_client(config.tracking.uri)
    version = client.get_model_version_by_alias("demo", "candidate")
    run = client.get_run(version.run_id).info
    assert run.run_name == ("long (registered)" if elsewhere else "long")
    assert (tmp_path / "gone").exists() is False, "and the other store is not asked"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("gate",), 2, "there is no registered model demo; register a version first"),
        (("register", "--stage", "lang"), 2, "no stage 'lang'; did you mean long?"),
        (("register", "--stage", "pretrain"), 2, "stage pretrain has no checkpoint"),
        (("register", "--digest", "sha256:0"), 2, "expected digest sha256:0"),
        (("gate", "registry.gates="), 2, "registry.gates: expected a file of promotion gates"),
    ],
)
def test_bad_input_is_one_message_and_writes_nothing(
    promote: Promote,
    config: Config,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    assert promote(*arguments) == code
    assert says in capsys.readouterr().err
    assert open_client(config.tracking.uri).search_registered_models() == []


def test_a_version_of_somebody_elses_is_not_judged(
    promote: Promote, config: Config, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    promote("register")
    client = open_client(config.tracking.uri)
    client.create_model_version("demo", str(tmp_path / "elsewhere"))
    assert promote("promote", "--version", "2") == 2
    said = "version 2 of demo was registered by something else than `tools/promote.py register`"
    assert said in capsys.readouterr().err
    client.set_registered_model_alias("demo", "champion", "2")
    assert promote("gate") == 42
    assert "REFUSED  no_worse: right: expected the champion's samples, got 100 that" in capsys.readouterr().out


def test_a_release_that_is_gone_is_named(
    promote: Promote, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    promote("register")
    releases = Path(config.output) / "demo" / "releases"
    releases.rename(releases.with_name("moved"))
    assert promote("gate") == 2
    assert re.search(rf"release of version 1 of demo, {releases}/\w+, is not there", capsys.readouterr().err)


def test_a_model_that_does_not_answer_is_refused(
    promote: Promote, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    promote("register")
    monkeypatch.setattr(commands, "try_loading", lambda uri, source: (0.0, "DigestMismatch: weights"))
    assert promote("gate") == 42
    assert "REFUSED  answers: the served model does not answer: DigestMismatch" in capsys.readouterr().out


@pytest.mark.parametrize(("error", "code"), [("PERMISSION_DENIED", 2), ("INTERNAL_ERROR", 1)])
def test_a_registry_that_refuses_is_one_message(
    promote: Promote, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: str, code: int
) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise MlflowException("eve may not", error_code=ErrorCode.Value(error))

    monkeypatch.setattr(MlflowClient, "create_model_version", refuse)
    assert promote("register") == code
    assert capsys.readouterr().err.strip() == "eve may not"


def test_a_container_without_a_name_for_its_user_moves_aliases_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 987_654_321)
    assert commands._user() == "uid 987654321"
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    assert commands._user() == "ada"
