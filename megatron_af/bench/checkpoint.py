"""What a checkpoint costs: bytes, how long training stands still, and how long until it can be read.

    result = measure(Path(folder), progress)        # tools/bench.py checkpoint

The model of ``bench/learning.py`` in float32, with the state of its optimizer after a step. Beside it what the public
code does: ``torch.save`` of both state dictionaries, while training waits. A save with the disk's cache warm; the ways
in turn, the first round left out.

Wall-clock time: the writer is a process of its own, and training waits for it or not.
"""

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table

from megatron_af.bench.learning import BATCH, Learning, Mixed, configuration
from megatron_af.bench.machine import world
from megatron_af.progress import Progress

WIDTH, ROUNDS = 512, 5
WAYS = ("public", "waiting", "in the background")


def measure(folder: Path, progress: Progress) -> dict[str, Any]:
    """
    Returns:
        ``rows``: of each way ``megabytes``, ``stall_seconds`` and ``written_seconds`` (medians), and ``stall_of_step``.
    """
    torch.set_num_threads(1)
    with world() as groups:
        learning = Learning(configuration(WIDTH), groups)
        batch = Mixed.draw(0, BATCH)
        for way in ("public", "packed"):  # so that both optimizers have a state
            learning.seconds(batch, way)
        began = time.perf_counter()
        learning.seconds(batch, "packed")
        step = time.perf_counter() - began
        taken = _rounds(folder, learning, groups, progress)
    rows = []
    for way, found in taken.items():
        stall, written = (median(kind[1:]) for kind in zip(*found, strict=True))
        size = sum(file.stat().st_size for file in (folder / way).rglob("*") if file.is_file())
        rows.append({
            "way": way, "megabytes": size / 1e6, "stall_seconds": stall, "written_seconds": written,
            "stall_of_step": stall / step,
        })  # fmt: skip
    return {"rows": rows}


def tables(result: dict[str, Any]) -> list[Table]:
    """The result for the terminal."""
    table = Table("way", "MB", "training stands still, s", "readable after, s", "of a step", title="checkpoint")
    for row in result["rows"]:
        numbers = (row["megabytes"], row["stall_seconds"], row["written_seconds"])
        table.add_row(row["way"], *(f"{number:.3g}" for number in numbers), f"{row['stall_of_step']:.1%}")
    return [table]


def _rounds(folder: Path, learning: Learning, groups: Any, progress: Progress) -> dict[str, list[tuple[float, float]]]:
    """Of each way: seconds until training goes on, and until the checkpoint is there."""
    from megatron_af.runs.paths import Resume
    from megatron_af.train.checkpoint import Checkpoints
    from megatron_af.train.objectives.answer import Answer

    kept = {way: Checkpoints(folder / way, keep=1, asynchronous=way == WAYS[2]) for way in WAYS[1:]}
    (folder / WAYS[0]).mkdir(parents=True)
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for number in range(1, ROUNDS + 1):
        for way in WAYS:
            began = time.perf_counter()
            if way == "public":
                torch.save(learning.public.state(), folder / way / "checkpoint.pt")
                stall = written = time.perf_counter() - began
            else:
                resume = Resume(stage="step", step=number, skipped=0, samples=0, world_size=1)
                kept[way].save(learning.model, learning.optimizer, groups, resume, {}, Answer.parts)
                stall = time.perf_counter() - began
                kept[way].wait()
                written = time.perf_counter() - began
            taken[way].append((stall, written))
        progress.update("checkpoint", number, ROUNDS, "saved in every way")
    for checkpoints in kept.values():
        checkpoints.close()
    return taken
