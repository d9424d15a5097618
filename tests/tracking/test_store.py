"""The embedded store: made once however many ask at once, its experiments and their artifacts beside it."""

import sqlite3
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from megatron_af.tracking.store import experiment_id, file_lock, in_words, is_of_use_again, open_client, store_of


def test_a_store_is_made_where_there_is_none(tmp_path: Path) -> None:
    client = open_client(f"sqlite:///{tmp_path / 'deep/mlflow.db'}")
    assert (tmp_path / "deep/mlflow.db").is_file()
    assert client.search_registered_models() == []


def test_one_store_has_one_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_of("sqlite:///runs/mlflow.db") == store_of(f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert store_of("http://mlflow:5000/") == store_of("http://mlflow:5000") != store_of("http://mlflow:5001")


def test_an_experiment_is_made_once_with_its_artifacts_beside_the_store(store: str, tmp_path: Path) -> None:
    client = open_client(store)
    first = experiment_id(client, "team/demo")
    assert experiment_id(client, "team/demo") == first != experiment_id(client, "other")
    experiment = client.get_experiment(first)
    assert experiment.name == "team/demo"
    assert experiment.artifact_location == (tmp_path / "mlflow/artifacts/team_demo").as_uri()


def test_whoever_loses_the_race_takes_the_winners(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = open_client(store)
    winner = client.create_experiment("demo")
    find = client.get_experiment_by_name
    answers = iter([None])
    monkeypatch.setattr(client, "get_experiment_by_name", lambda name: next(answers, find(name)))
    assert experiment_id(client, "demo") == winner


def test_an_experiment_that_cannot_be_made_is_an_error(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = open_client(store)

    def refuse(*_: object, **__: object) -> str:
        raise MlflowException("no")

    monkeypatch.setattr(client, "create_experiment", refuse)
    with pytest.raises(MlflowException, match="no"):
        experiment_id(client, "demo")


def test_a_servers_artifacts_are_its_own_affair(monkeypatch: pytest.MonkeyPatch) -> None:
    client = open_client("http://127.0.0.1:9")  # asks nothing of it yet
    asked: dict[str, object] = {}
    monkeypatch.setattr(client, "get_experiment_by_name", lambda name: None)
    monkeypatch.setattr(MlflowClient, "create_experiment", lambda self, name, **kwargs: asked.update(kwargs) or "7")
    assert experiment_id(client, "demo") == "7" and asked == {"artifact_location": None}


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with file_lock(tmp_path / "lock"):
            order.append("second")

    thread = threading.Thread(target=second)
    with file_lock(tmp_path / "lock"):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_deleted_experiment_comes_back(store: str) -> None:
    client = open_client(store)
    experiment = experiment_id(client, "demo")
    client.delete_experiment(experiment)
    assert experiment_id(client, "demo") == experiment
    client.create_run(experiment)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("(sqlite3.OperationalError) database is locked\n[SQL: SELECT 1]", "/a/mlflow.db is locked by another process"),
        ("(sqlite3.DatabaseError) file is not a database\n[SQL: SELECT 1]", "/a/mlflow.db is no MLflow database"),
        ("eve may not\n[SQL: SELECT 1]", "eve may not"),
        (
            "API request to http://h:9/x failed with exception HTTPConnectionPool(host='h', port=9): Max "
            'retries (Caused by NewConnectionError("HTTPConnection: Failed: [Errno 111] Connection refused"))',
            "/a/mlflow.db does not answer (connection refused); is it there?",
        ),
        ("API request to x failed with exception Read timed out.", "/a/mlflow.db does not answer (no answer)"),
        ("Model registry functionality is unavailable; got unsupported URI 'foo://x'", "tracking.uri = sqlite:"),
    ],
)
def test_what_mlflow_raises_is_one_sentence(said: str, words: str) -> None:
    told = in_words(MlflowException(said), "sqlite:////a/mlflow.db")
    assert told.startswith(words) and "SQL:" not in told and "\n" not in told


def test_what_is_of_no_use_is_not_tried_again() -> None:
    assert is_of_use_again(MlflowException("database is locked"))
    assert not is_of_use_again(MlflowException("no", error_code=PERMISSION_DENIED))
    assert not is_of_use_again(MlflowException("got unsupported URI 'foo://x'"))


@pytest.mark.slow  # the store waits 20 s for the lock
def test_a_locked_store_is_told_without_a_traceback(store: str, capfd: pytest.CaptureFixture[str]) -> None:
    client = open_client(store)
    with sqlite3.connect(store.removeprefix("sqlite:///"), isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(MlflowException) as locked:
            experiment_id(client, "demo")
        other.execute("ROLLBACK")
    assert "is locked by another process" in in_words(locked.value, store) and "\n" not in in_words(locked.value, store)
    assert capfd.readouterr() == ("", "")
