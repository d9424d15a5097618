"""An embedded MLflow store, and a server that can fail."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mlflow_store import store, store_template
from tests.tracking.mlflow_server import MlflowServer

__all__ = ["server", "store", "store_template"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    server = MlflowServer(tmp_path / "artifacts")
    server.start()
    yield server
    server.stop()
