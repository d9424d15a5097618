"""Each part is tried: what works is said so, and each fault that a machine can have is found and has its fix."""

import collections
import http.server
import importlib.metadata
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import soundfile
import torch

from dali_pipes import mel as dali_mel
from megatron_af.config import Config, TrackingConfig
from megatron_af.doctor import examine
from megatron_af.doctor.findings import State
from megatron_af.parallel import device as devices
from megatron_af.parallel.device import Device

WORKS, ABSENT, SLOW, BROKEN = State.WORKS, State.ABSENT, State.SLOW, State.BROKEN
Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool, str], None]:
    """A machine with or without a GPU that torch sees, and with a driver's version."""

    def have(seen: bool, driver: str) -> None:
        device = Device(torch=torch.device("cuda" if seen else "cpu"))
        monkeypatch.setattr(devices, "current_device", lambda: device)
        monkeypatch.setattr(Device, "name", "NVIDIA H100")
        monkeypatch.setattr(examine, "_smi", lambda query: [driver] if driver else [])

    return have


def test_this_machine_can_train() -> None:
    for look in (examine.python, examine.packages, examine.mel, examine.sound_files, examine.shared_memory):
        found = look()
        assert found.state is not BROKEN, found


def test_python_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, state in (((3, 11, 9), BROKEN), ((3, 12, 0), WORKS), ((3, 14, 3), WORKS), ((3, 15, 0), BROKEN)):
        monkeypatch.setattr(sys, "version_info", version)
        assert examine.python().state is state


def test_memory_and_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(free: float, load: float) -> State:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=24 * 2**30, available=free * 2**30))
        monkeypatch.setattr(os, "getloadavg", lambda: (load, 0, 0))
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        return examine.machine().state

    assert [found(12, 1.0), found(2, 1.0), found(12, 9.0)] == [WORKS, SLOW, SLOW]


def test_packages_that_are_missing_or_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, lock = tmp_path / "pyproject.toml", tmp_path / "run.lock"
    project.write_text('[project]\ndependencies = ["torch==2.*", "gone>=1", "numpy>=2,<3"]\n')
    lock.write_text("# a comment\nnumpy==9.9.9\ntorch==2.1.0 ; python_version < '4'\n")
    versions = {"torch": "2.1.0+cpu", "numpy": "9.9.9"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = examine.packages(project, lock)
    assert (found.state, found.told) == (BROKEN, "not installed: gone")
    versions["gone"] = "1.0"
    assert examine.packages(project, lock).state is WORKS, "what the lock does not pin may be of any version"
    versions["numpy"] = "2.4.1"
    found = examine.packages(project, lock)
    assert (found.state, found.told) == (SLOW, "numpy 2.4.1 (tested with 9.9.9)")


def test_a_gpu_that_only_the_driver_sees_is_broken(gpu: Callable[[bool, str], None]) -> None:
    gpu(False, "")
    assert examine.gpu().state is ABSENT
    gpu(False, "580.1")
    assert examine.gpu().state is BROKEN and "driver 580.1, but torch sees no GPU" in examine.gpu().told
    gpu(True, "580.1")
    assert examine.gpu().state is WORKS and "H100; driver 580.1" in examine.gpu().told


@pytest.mark.parametrize(
    ("seen", "problem", "state"),
    [(False, "is not installed", ABSENT), (True, "is not installed", SLOW), (False, "", WORKS),
     (False, "is installed and cannot be imported (OSError: x)", SLOW)],
)  # fmt: skip
def test_transformer_engine(
    gpu: Callable[[bool, str], None], monkeypatch: pytest.MonkeyPatch, seen: bool, problem: str, state: State
) -> None:
    gpu(seen, "")
    monkeypatch.setattr(devices, "transformer_engine_problem", lambda: problem)
    assert examine.layers().state is state


def test_dali_that_is_absent_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails:
        def __init__(self, *args: Any, **named: Any) -> None:
            raise RuntimeError("CUDA driver\n  version is insufficient")

    monkeypatch.setattr(dali_mel, "MelPipeline", Fails)
    found = examine.mel()
    assert (found.state, found.told) == (BROKEN, "imports and fails: CUDA driver version is insufficient")
    monkeypatch.setattr(dali_mel, "dali_problem", lambda: "ImportError: no")
    assert examine.mel().state is SLOW


def test_formats_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"FLAC": "", "WAV": "", "OGG": ""})
    found = examine.sound_files()
    assert (found.state, found.told) == (BROKEN, "no MP3")
    monkeypatch.setitem(sys.modules, "av", None)
    assert examine.sound_files().state is SLOW


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> str:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "gethostname", lambda: "box")
    monkeypatch.setattr(socket, "gethostbyname", fails)
    found = examine.host_name()
    assert found.state is SLOW and "add '127.0.1.1 box' to /etc/hosts" in found.fix


def test_disks_that_are_full_or_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert examine.disk(tmp_path / "not" / "yet", "output").told.endswith("free in " + str(tmp_path / "not" / "yet"))
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing"
    monkeypatch.setattr(examine.shutil, "disk_usage", lambda path: Usage(2**40, 0, 2**30))
    assert examine.disk(tmp_path, "output").state is SLOW and "set output=" in examine.disk(tmp_path, "output").fix

    def closed(dir: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(examine.tempfile, "TemporaryFile", closed)
    found = examine.disk(tmp_path, "data.root")
    assert found.state is BROKEN and "Permission denied" in found.told and "data.root=" in found.fix


def test_small_or_no_shared_memory_and_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert examine.shared_memory(tmp_path / "no").state is BROKEN
    monkeypatch.setattr(examine.shutil, "disk_usage", lambda path: Usage(64 * 2**20, 0, 64 * 2**20))
    assert examine.shared_memory(tmp_path).state is SLOW
    for limit, state in ((1024, SLOW), (65536, WORKS), (resource.RLIM_INFINITY, WORKS)):
        monkeypatch.setattr(resource, "getrlimit", lambda which, limit=limit: (limit, limit))
        assert examine.open_files().state is state


@pytest.fixture
def server() -> Iterator[tuple[str, list[int]]]:
    """An HTTP server's address, and the status that it answers with."""
    status = [200]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if status[0] == 0:  # not HTTP
                self.wfile.write(b"\x15\x03\x01 hello\r\n")
                return
            self.send_response(status[0] if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *args: Any) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", status
        running.shutdown()


def test_mlflow_is_asked(server: tuple[str, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri, status = server
    config = Config(name="x", output=str(tmp_path), tracking=TrackingConfig(uri=uri))
    assert examine.tracking(config).state is WORKS
    status[0] = 401
    assert examine.tracking(config).state is SLOW and "MLFLOW_TRACKING_TOKEN" in examine.tracking(config).fix
    status[0] = 0
    assert examine.tracking(config).state is SLOW and "hello" in examine.tracking(config).told
    away = replace(config, tracking=TrackingConfig(uri="http://127.0.0.1:9"))
    assert examine.tracking(away).state is SLOW and "runs wait on disk" in examine.tracking(away).told
    assert examine.tracking(replace(config, tracking=TrackingConfig(enabled=False))).state is ABSENT
    assert "mlflow.db" in examine.tracking(replace(config, tracking=TrackingConfig())).told


@pytest.mark.slow
def test_processes_that_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **named: Any) -> Any:
        assert "tools/measure_network.py" in command[-1] and command[-2] == "2"
        return SimpleNamespace(returncode=1, stdout="", stderr="a\nConnection refused")

    monkeypatch.setattr(examine.subprocess, "run", run)
    found = examine.exchange()
    assert found.state is BROKEN and found.told.endswith("exit code 1: a Connection refused")
    monkeypatch.undo()
    found = examine.exchange(seconds=0.01)
    assert found.state is BROKEN and "have not met after 0 s" in found.told


def test_of_several_gpus_those_count_that_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "_smi", lambda query: ["one", "two"])
    monkeypatch.setattr(devices, "current_device", lambda: SimpleNamespace(is_gpu=True, gpus=1))

    def run(command: list[str], **named: Any) -> Any:
        assert command[-2] == "1"
        return SimpleNamespace(returncode=0, stdout="1 MiB  2.0 ms  3.0 GB/s", stderr="")

    monkeypatch.setattr(examine.subprocess, "run", run)
    found = examine.exchange()
    assert (found.part, found.told) == ("NCCL", "1 processes, 3.00 GB/s at best")


@pytest.mark.slow
def test_two_processes_exchange() -> None:
    found = examine.exchange()
    assert (found.part, found.state) == ("gloo", WORKS) and "GB/s at best" in found.told, found
