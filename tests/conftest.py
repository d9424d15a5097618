"""What every test shares: one thread a process, no network, and what a test may ask for.

.venv/bin/pytest tests/test_parity.py --fixture FILE.npz    # parity against any fixture of the format
@requires_gpu                                               # from tests.conftest; skipped without a GPU
pytestmark = pytest.mark.slow                               # the tier of what starts processes, or takes long
def test(foundation_folder): ...                            # a folder that every command can be tried in a copy of
"""

import gc
import os
import sys
from collections.abc import Generator
from pathlib import Path
from time import process_time
from typing import Any

# Before torch, mlflow and huggingface_hub are imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

gc.disable()  # until every test is collected: what modules make stays, and would be searched again and again
# What tests before have left uncollected may wait for threads that a fork does not copy, as DALI's pipelines do.
os.register_at_fork(after_in_child=gc.freeze)

requires_gpu = pytest.mark.requires_gpu

FAST_SECONDS = 10
"""Processor time within which a test of the fast tier ends."""


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


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def foundation_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that commands are tried in (``tests/faults/entry_points.py``), to copy; it takes long to make."""
    from tests.faults.entry_points import foundation  # and with it every tool, which few tests need

    folder = tmp_path_factory.mktemp("foundation") / "whole"
    foundation(folder)
    return folder


_fast_test = ""
"""What runs of the fast tier, while that tier alone is asked for (`make test-fast`)."""


BRIEF = ("git", "uname")
"""What imports and tests of this tier may ask: they take milliseconds."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    global _fast_test
    _fast_test = item.nodeid if item.config.option.markexpr == "not slow" else ""
    try:
        return (yield)
    finally:
        _fast_test = ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    began = process_time()
    result = yield
    if _fast_test and (took := process_time() - began) > FAST_SECONDS:
        pytest.fail(f"took {took:.0f} s of processor time, the fast tier allows {FAST_SECONDS}: mark it slow")
    return result


def _no_process_in_the_fast_tier(event: str, arguments: tuple[Any, ...]) -> None:
    starts = event == "os.fork" or (event == "subprocess.Popen" and Path(os.fsdecode(arguments[0])).name not in BRIEF)
    if starts and _fast_test:
        raise AssertionError(f"{_fast_test} starts a process: mark it, or its module, slow")


sys.addaudithook(_no_process_in_the_fast_tier)
