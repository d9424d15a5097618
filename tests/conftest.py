"""What every test shares: one thread a process, no network, and the two things a test may ask for.

    .venv/bin/pytest tests/test_parity.py --fixture FILE.npz    # parity against any fixture of the format
    @requires_gpu                                               # from tests.conftest; skipped without a GPU
"""

import os

# Before torch, mlflow and huggingface_hub are imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

requires_gpu = pytest.mark.requires_gpu


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fixture", action="append", default=[], help="parity fixture (.npz) for tests/test_parity.py; repeatable"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("requires_gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
