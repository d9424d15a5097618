"""What has to be known of a GPU before a run is trusted to it, in minutes: does it compute what a CPU does, how fast.

    result = measure(Path(folder), progress, seconds=450, keep=write)       # tools/bench.py gpu --seconds 450

Needs torch, megatron-core and omegaconf; DALI, Transformer Engine and the rest may be missing, for batches are random.
Sections in their order, each kept as soon as it ends: ``environment``; ``parity``, the loss and every gradient of a
packed batch in float32 with torch's layers and in bf16 with those of the machine, against a process that sees no GPU;
``kernels``, whether any attention falls back to materialised scores; ``step``, milliseconds of the mixed stream by way
(``bench/step.py``); of each released size ``cached`` and ``live``, steps of its stages, and ``decoding``
(``bench/released.py``); ``checkpoint`` (``bench/checkpoint.py``). What the time did not allow is named in ``not_run``,
and what raised in ``failed``, with its traceback; the others go on.
"""

import gc
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from megatron_af.bench import checkpoint, released, step
from megatron_af.bench.learning import Learning, Mixed, configuration
from megatron_af.bench.machine import copy_rate, matmul_rate, world
from megatron_af.bench.same import Computed, check_alike, check_same, without_corners
from megatron_af.config import Config, ConfigError
from megatron_af.cores import usable_cores
from megatron_af.parallel.device import Device, current_device, transformer_engine_problem
from megatron_af.progress import Progress

BATCH = Mixed(windows=(1, 3, 1, 2, 5, 1), tokens=(60, 120, 45, 80, 150, 50))
WIDTH = 512
TOLD = 4_000
"""Letters of what a process that failed has said."""
MATH_KERNEL = "aten::_scaled_dot_product_attention_math"
"""What attention with materialised scores is called in a profile."""


def measure(
    folder: Path, progress: Progress, *, seconds: float = 450.0, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """
    Args:
        seconds: no section begins after these.
        keep: told the result so far, after every section, and within one after every row.

    Raises:
        ConfigError: there is no GPU.
    """
    device = current_device()
    if not device.is_gpu:
        raise ConfigError("tools/bench.py gpu: expected an NVIDIA GPU, and torch finds none: run it where one is")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    began = time.perf_counter()
    result: dict[str, Any] = {"not_run": [], "failed": {}}

    def keep_streams(so_far: dict[str, Any]) -> None:
        result["step"] = so_far
        keep(result)

    sections: dict[str, Callable[[], Any]] = {
        "environment": lambda: environment(device),
        "parity": lambda: parity(folder, device),
        "kernels": kernels,
        "step": lambda: step.measure(folder, progress, keep=keep_streams),
    }
    for size, file in released.SIZES.items():
        sections |= {
            f"{size} cached": partial(_stepped, file, released.CACHED, result),
            f"{size} decoding": partial(_decoded, file),
            f"{size} live": partial(_stepped, file, released.LIVE, result),
        }
    sections["checkpoint"] = lambda: checkpoint.measure(folder / "checkpoint", progress)
    for number, (name, section) in enumerate(sections.items(), 1):
        if time.perf_counter() - began > seconds:
            result["not_run"].append(name)
        else:
            try:
                result[name] = found = section()
                if isinstance(found, Iterator):
                    result[name] = rows = []
                    for row in found:
                        rows.append(row)
                        keep(result)
            except Exception:  # whatever a device meets first
                result["failed"][name] = traceback.format_exc()
        gc.collect()  # a model of a section that failed, which its frames held until now: the next one wants the room
        keep(result)
        progress.update("gpu", number, len(sections), name)
    return result


def tables(result: dict[str, Any]) -> list[Table]:
    """The result for the terminal."""
    facts = Table("what", "found", title="GPU")
    for section in ("environment", "parity", "kernels"):
        for name, value in result.get(section, {}).items():
            facts.add_row(f"{section}: {name}", f"{value:.3g}" if isinstance(value, float) else str(value))
    for name, told in result.get("failed", {}).items():
        facts.add_row(name, f"failed: {told.strip().splitlines()[-1]}")
    for name in result["not_run"]:
        facts.add_row(name, "not run: no time was left")
    stepped, decoded = (
        {name: rows for name, rows in result.items() if name.endswith(kinds)}
        for kinds in ((" cached", " live"), " decoding")
    )
    return [
        facts,
        *(step.tables(result["step"]) if "step" in result else []),
        *(released.tables(stepped, decoded) if stepped or decoded else []),
        *(checkpoint.tables(result["checkpoint"]) if "checkpoint" in result else []),
    ]


def _stepped(file: str, stage: str, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    rate = 1e12 * result["environment"]["matmul_teraflops"]
    with world() as groups:
        yield from released.steps(released.configuration(file, stage), groups, rate)


def _decoded(file: str) -> Iterator[dict[str, Any]]:
    with world():
        yield from released.decoding(file, copy_rate(current_device().torch))


def environment(device: Device) -> dict[str, Any]:
    """Card, versions, and the rate of a large matrix product in bf16."""
    return {
        "card": device.name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "transformer_engine": transformer_engine_problem() or "imports",
        "matmul_teraflops": matmul_rate(device.torch, 8192, torch.bfloat16) / 1e12,
    }


def parity(folder: Path, device: Device) -> dict[str, float]:
    """Against a process that sees no GPU.

    Raises:
        RuntimeError: loss or gradients differ by more than rounding.
    """
    file = folder / "cpu.pt"
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(min(8, usable_cores()))}
    hidden = {name: value for name, value in hidden.items() if name not in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    command = [sys.executable, "-m", "megatron_af.bench.gpu", str(file), str(WIDTH)]
    done = subprocess.run(command, env=hidden, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that sees no GPU ended with code {done.returncode}:\n{done.stderr[-TOLD:]}")
    wanted: Computed = torch.load(file, weights_only=False)
    with world() as groups:
        exact, rounded = (computed(precision, WIDTH, groups) for precision in ("fp32", "bf16"))
    check_same(exact, wanted)
    loss, cosine = check_alike(rounded, wanted)
    worst = max(
        float((exact.gradients[name] - value).abs().max() / value.abs().max().clamp(min=1e-12))
        for name, value in wanted.gradients.items()
    )
    return {
        "float32 loss": abs(exact.loss - wanted.loss) / abs(wanted.loss),
        "float32 worst gradient": worst,
        "bf16 loss": loss,
        "bf16 least cosine": cosine,
    }


def computed(precision: str, width: int, groups: Any) -> Computed:
    """Loss and gradients of the batch, without corners: of its million ReLUs now and then one lies so near to zero that
    rounding decides, and a gradient is off by a thousandth."""
    with without_corners():
        return Learning(parity_configuration(precision, width), groups).computed(BATCH, "packed")


def parity_configuration(precision: str, width: int) -> Config:
    """Float32 with the layers that a CPU has, bf16 with those of the machine."""
    config = configuration(width, precision)
    return replace(config, layers="torch") if precision == "fp32" else config


def kernels() -> dict[str, Any]:
    """Attention with materialised scores in a bf16 step: none is meant."""
    from torch.profiler import ProfilerActivity, profile

    with world() as groups:
        learning = Learning(parity_configuration("bf16", WIDTH), groups)
        learning.computed(BATCH, "packed")
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            learning.computed(BATCH, "packed")
    calls = sum(event.count for event in seen.key_averages() if event.key == MATH_KERNEL)
    return {"attention with materialised scores": calls}


def main(file: str, width: int) -> None:
    """The process that sees no GPU."""
    with world() as groups:
        torch.save(computed("fp32", width, groups), file)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
