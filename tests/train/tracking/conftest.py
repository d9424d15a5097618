"""A server that can fail, and an embedded store copied from a template (making one takes seconds)."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train.tracking.mlflow_server import MlflowServer


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    server = MlflowServer(tmp_path / "artifacts")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised, empty sqlite store, made once for all workers of a test run."""
    from megatron_af.train.tracking.store import file_lock, open_client

    shared = tmp_path_factory.getbasetemp().parent / "mlflow_template"
    shared.mkdir(exist_ok=True)
    with file_lock(shared / "lock"):
        if not (shared / "ready").exists():
            open_client(f"sqlite:///{shared / 'mlflow.db'}")
            (shared / "ready").touch()
    return shared / "mlflow.db"


@pytest.fixture
def store(store_template: Path, tmp_path: Path) -> str:
    """URI of a fresh embedded store."""
    folder = tmp_path / "mlflow"
    folder.mkdir()
    shutil.copy(store_template, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"
