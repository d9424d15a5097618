"""The GPU's bench: its parts on the CPU; where there is a GPU, all of it."""

import copy
import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from megatron_af.bench import gpu
from megatron_af.bench.same import LOSS, PARTS, ROUNDED_COSINE, Computed
from megatron_af.config import ConfigError
from megatron_af.parallel.device import Device
from megatron_af.progress import silent
from tests.conftest import requires_gpu

PARITY = """
import sys, torch
from pathlib import Path
from megatron_af.bench import gpu
from megatron_af.bench.learning import Mixed
from megatron_af.parallel.device import Device
gpu.WIDTH = 64
found = gpu.parity(Path(sys.argv[1]), Device(torch.device("cpu")))
print(*(f"{value:.1e}" for value in found.values()))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_machine_without_a_gpu_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected an NVIDIA GPU, and torch finds none"):
        gpu.measure(tmp_path, silent(), seconds=1.0, keep=lambda result: None)


def test_what_the_time_did_not_allow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "current_device", lambda: Device(torch.device("cuda", 0)))
    monkeypatch.setattr(gpu, "environment", lambda device: {"card": "H100"})
    kept: list[dict[str, Any]] = []
    result = gpu.measure(tmp_path, silent(), seconds=0.0, keep=lambda so_far: kept.append(dict(so_far)))
    first, last = ["environment", "parity", "kernels", "step", "0.5B cached"], ["3B live", "checkpoint"]
    assert result["not_run"][:5] == first and result["not_run"][-2:] == last
    assert len(kept) == len(result["not_run"]) == 11
    (facts,) = gpu.tables(result)
    assert facts.row_count == 11
    (facts,) = gpu.tables({"not_run": ["step"], "environment": {"card": "H100", "matmul_teraflops": 700.0}})
    assert facts.row_count == 3


def test_what_fails_is_named_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError("two ways gave losses of 1.0 and 2.0")

    for name in ("parity", "_stepped", "_decoded"):
        monkeypatch.setattr(gpu, name, fail)
    monkeypatch.setattr(gpu, "current_device", lambda: Device(torch.device("cuda", 0)))
    monkeypatch.setattr(gpu, "environment", lambda device: {"card": "H100"})
    monkeypatch.setattr(gpu, "kernels", lambda: {"attention with materialised scores": 0})
    monkeypatch.setattr(gpu.step, "measure", fail)
    monkeypatch.setattr(gpu.checkpoint, "measure", lambda folder, progress: {"rows": []})
    kept: list[dict[str, Any]] = []
    result = gpu.measure(tmp_path, silent(), keep=lambda so_far: kept.append(dict(so_far)))
    assert len(kept) == 11 and list(result["failed"]) == ["parity", "step", *(
        f"{size} {kind}" for size in ("0.5B", "3B") for kind in ("cached", "decoding", "live"))]  # fmt: skip
    assert result["kernels"] and result["checkpoint"] == {"rows": []} and not result["not_run"]
    assert "in fail" in result["failed"]["parity"], "a traceback"
    facts, _ = gpu.tables(result)
    assert list(facts.columns[1].cells)[2] == "failed: RuntimeError: two ways gave losses of 1.0 and 2.0"


def test_rows_are_kept_as_they_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command may be ended within a section: a machine is lent for minutes."""

    def stepped(*arguments: Any) -> Iterator[dict[str, Any]]:
        yield {"windows": 3}
        yield {"windows": 12}
        raise RuntimeError("no kernel image is available")

    def mixed(folder: Path, progress: Any, keep: Any) -> dict[str, Any]:
        keep({"streams": [1]})
        return {"streams": [1, 2]}

    monkeypatch.setattr(gpu, "current_device", lambda: Device(torch.device("cuda", 0)))
    monkeypatch.setattr(gpu, "environment", lambda device: {"card": "H100"})
    for name in ("parity", "kernels"):
        monkeypatch.setattr(gpu, name, lambda *arguments: {})
    monkeypatch.setattr(gpu, "_stepped", stepped)
    monkeypatch.setattr(gpu, "_decoded", lambda file: iter(()))
    monkeypatch.setattr(gpu.step, "measure", mixed)
    monkeypatch.setattr(gpu.checkpoint, "measure", lambda folder, progress: {})
    kept: list[dict[str, Any]] = []
    result = gpu.measure(tmp_path, silent(), keep=lambda so_far: kept.append(copy.deepcopy(so_far)))
    assert result["0.5B cached"] == [{"windows": 3}, {"windows": 12}] and "0.5B cached" in result["failed"]
    assert result["step"] == {"streams": [1, 2]} and result["3B decoding"] == []
    assert {"streams": [1]} in [so_far.get("step") for so_far in kept]
    assert [{"windows": 3}] in [so_far.get("3B live") for so_far in kept]


def test_streams_before_the_one_that_fails_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mixed(folder: Path, progress: Any, keep: Any) -> dict[str, Any]:
        keep({"streams": [1]})
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(gpu, "current_device", lambda: Device(torch.device("cuda", 0)))
    monkeypatch.setattr(gpu, "environment", lambda device: {"card": "H100"})
    for name in ("parity", "kernels", "_stepped", "_decoded"):
        monkeypatch.setattr(gpu, name, lambda *arguments: {})
    monkeypatch.setattr(gpu.step, "measure", mixed)
    monkeypatch.setattr(gpu.checkpoint, "measure", lambda folder, progress: {})
    result = gpu.measure(tmp_path, silent(), keep=lambda so_far: None)
    assert list(result["failed"]) == ["step"] and result["step"] == {"streams": [1]}


def test_a_model_of_a_section_that_failed_is_gone_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It and its gradient buffers hold each other, and on a full GPU there is no room for another one."""
    models: list[weakref.ref[torch.nn.Module]] = []
    alive: list[bool] = []

    def fail() -> Any:
        model = torch.nn.Module()
        model.buffers_of = [model]
        models.append(weakref.ref(model))
        raise torch.OutOfMemoryError("no room")

    def look(*arguments: Any, **named: Any) -> Any:
        alive.append(models[0]() is not None)
        return {"rows": []}

    monkeypatch.setattr(gpu, "current_device", lambda: Device(torch.device("cuda", 0)))
    monkeypatch.setattr(gpu, "environment", lambda device: {"card": "H100"})
    monkeypatch.setattr(gpu, "parity", lambda folder, device: {})
    monkeypatch.setattr(gpu, "kernels", fail)
    for name in ("_stepped", "_decoded"):
        monkeypatch.setattr(gpu, name, look)
    monkeypatch.setattr(gpu.step, "measure", look)
    monkeypatch.setattr(gpu.checkpoint, "measure", look)
    gc.disable()
    try:
        result = gpu.measure(tmp_path, silent(), keep=lambda so_far: None)
    finally:
        gc.enable()
    assert list(result["failed"]) == ["kernels"] and len(alive) == 8 and not any(alive)


def test_what_the_process_without_a_gpu_said_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = SimpleNamespace(returncode=1, stderr="Traceback …\nValueError: no such width")
    monkeypatch.setattr(gpu.subprocess, "run", lambda *arguments, **named: done)
    with pytest.raises(RuntimeError, match=r"(?s)sees no GPU ended with code 1:.*ValueError: no such width"):
        gpu.parity(tmp_path, Device(torch.device("cpu")))


@pytest.mark.slow
def test_parity_is_found_between_two_processes(tmp_path: Path) -> None:
    """The CPU against the CPU in float32, and against itself in bf16."""
    run = [sys.executable, "-c", PARITY, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loss, worst, rounded, cosine = map(float, done.stdout.split())
    assert loss < 1e-6 and worst < 1e-5, "threads share sums otherwise"
    assert 0 < rounded < 2e-2 and 0.99 < cosine <= 1


@pytest.mark.parametrize("side", ["the process that sees no GPU", "the one that does"])
def test_no_unit_of_parity_switches(side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that rounding switches on one side alone gives its gradients an error of a thousandth."""
    smooth: list[bool] = []

    class Seen:
        def __init__(self, config: Any, groups: Any) -> None: ...

        def computed(self, batch: Any, way: str) -> Computed:
            smooth.append(F.relu is F.softplus)
            return Computed(1.0, {f"{part}w": torch.ones(1) for part in PARTS})

    monkeypatch.setattr(gpu, "Learning", Seen)
    monkeypatch.setattr(gpu, "world", nullcontext)
    if side == "the one that does":
        torch.save(Seen(None, None).computed(None, ""), tmp_path / "cpu.pt")
        smooth.clear()
        done = SimpleNamespace(returncode=0)
        monkeypatch.setattr(gpu.subprocess, "run", lambda *arguments, **named: done)
        gpu.parity(tmp_path, Device(torch.device("cpu")))
    else:
        gpu.main(str(tmp_path / "cpu.pt"), 64)
    assert smooth and all(smooth)


@requires_gpu
def test_a_gpu_computes_what_a_cpu_does(tmp_path: Path) -> None:
    found = gpu.parity(tmp_path, Device(torch.device("cuda", 0)))
    assert found["float32 loss"] < LOSS and found["bf16 least cosine"] > ROUNDED_COSINE
    assert gpu.kernels() == {"attention with materialised scores": 0}
