"""The embedded store: made once however many ask at once, its experiments and their artifacts beside it."""

import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from megatron_af.tracking.store import experiment_id, file_lock, open_client


def test_a_store_is_made_where_there_is_none(tmp_path: Path) -> None:
    client = open_client(f"sqlite:///{tmp_path / 'deep/mlflow.db'}")
    assert (tmp_path / "deep/mlflow.db").is_file()
    assert client.search_registered_models() == []


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
