"""A server that can fail."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracking.mlflow_server import MlflowServer


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    server = MlflowServer(tmp_path / "artifacts")
    server.start()
    yield server
    server.stop()
