"""An embedded MLflow store for tests, copied from a template because making one takes seconds.

    from tests.mlflow_store import store, store_template    # in a conftest.py
"""

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised, empty sqlite store, made once for all workers of a test run."""
    from megatron_af.tracking.store import file_lock, open_client

    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "mlflow_template"
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
