"""What a step costs, by what is padded to what, beside the public code's way.

    result = measure(Path(folder), progress)        # tools/bench.py step

The mixed stream has clips as curricula mix them: 60% have one window, 25% two or three, 15% four to thirty; texts have
40 to 200 tokens; a batch has eight samples. Its features come from a cache, or from a frozen HTS-AT: then no clip has
more than 2, or 7, windows. The uniform streams have one sample of 3, 12 or 30 windows. The ways (``learning.py``) must
give the loss and the gradients of float64 before any is timed. Loss, backward pass and optimizer step are timed, the
ways in turn, behind a first step of each; on the CPU in processor seconds of one thread, float32. A way's part of the
limit is what its samples need without any padding, over what a large matrix product would compute in the same time.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table

from megatron_af.bench.learning import BATCH, DTYPES, Learning, Mixed, configuration
from megatron_af.bench.machine import matmul_rate, peak_mib, world
from megatron_af.bench.same import check_alike, check_same, without_corners
from megatron_af.parallel.device import current_device
from megatron_af.progress import Progress

WIDTHS = (512, 2048)
"""Of the audio tokens."""
LIVE_WIDTH, LIVE_DEPTHS, LIVE_LONGEST = 512, (2, 2, 6, 2), (2, 7)
UNIFORM_WIDTH, UNIFORM_TOKENS = 2048, 120
UNIFORM_STEPS = {3: 9, 12: 5, 30: 3}
"""By windows: the shorter a step, the more its time is also the machine's."""
STEPS = 3
WAYS = ("public", "longest", "groups", "packed")
LIVE_WAYS = ("public live", "live")
ONE_SAMPLE = ("public", "packed")
"""Ways that differ where a batch is one sample."""


def measure(folder: Path, progress: Progress, *, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """
    Args:
        keep: told the result so far, after every stream; the one that takes longest is the last.

    Returns:
        ``rows``: of each stream, audio width and way ``milliseconds`` of a step (the median), ``spread`` (least and
        most), ``times`` (how often faster than the public way), ``limit`` (part of a matrix product's rate) and
        ``peak_mib`` (memory that the largest step takes at its peak; 0 where the system does not tell);
        ``useful``: share of the transformation layers' positions that are some clip's own, by way;
        ``matmul_gigaflops``.
    """
    torch.set_num_threads(1)
    mixed = [Mixed.draw(seed, BATCH) for seed in range(STEPS)]
    device = current_device()
    precision = "bf16" if device.is_gpu else "fp32"
    rate = matmul_rate(device.torch, 8192 if device.is_gpu else 1024, DTYPES[precision])
    streams: list[tuple[str, int, list[Mixed], tuple[str, ...]]] = [("mixed", WIDTHS[0], mixed, WAYS)]
    for longest in LIVE_LONGEST:
        drawn = [Mixed.draw(seed, BATCH, longest) for seed in range(STEPS)]
        streams.append((f"mixed, encoder live, up to {longest} windows", LIVE_WIDTH, drawn, LIVE_WAYS))
    for windows, steps in UNIFORM_STEPS.items():
        uniform = [Mixed((windows,), (UNIFORM_TOKENS + seed,)) for seed in range(steps)]
        streams.append((f"uniform, {windows} windows", UNIFORM_WIDTH, uniform, ONE_SAMPLE))
    streams.append(("mixed", WIDTHS[1], mixed, WAYS))
    result: dict[str, Any] = {
        "rows": [], "useful": useful(mixed), "device": device.name, "matmul_gigaflops": rate / 1e9,
    }  # fmt: skip
    with world() as groups:
        for number, (stream, width, batches, ways) in enumerate(streams, 1):
            depths = LIVE_DEPTHS if ways == LIVE_WAYS else (1, 1, 1, 1)
            learning = Learning(configuration(width, precision, depths), groups)
            measured = compared(learning, batches, ways, rate)
            result["rows"] += [{"stream": stream, "width": width} | row for row in measured]
            keep(result)
            progress.update("step", number, len(streams), f"{stream}, width {width}")
    return result


def compared(learning: Learning, batches: Sequence[Mixed], ways: Sequence[str], rate: float) -> list[dict[str, Any]]:
    """Of each way what its steps took, after all of them gave the same loss and gradients.

    Args:
        ways: the public one first.
    """
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    operations = 0.0
    for batch in batches:
        with without_corners():
            same = [learning.computed(batch, way) for way in ways]
            wanted = learning.reference(batch, ways[0])
        for found in same:
            if learning.exact:
                check_same(found, wanted, plain=same[0])
            else:
                check_alike(found, wanted)
        operations += learning.operations(batch, ways[0])
    for way in ways:
        learning.seconds(batches[0], way)  # a first step makes the optimizer's state
    for batch in batches:
        for way in ways:  # in turn, so that what disturbs the machine disturbs all of them
            seconds[way].append(learning.seconds(batch, way))
    largest = max(batches, key=lambda batch: sum(batch.windows))
    return [
        {
            "way": way,
            "milliseconds": 1000 * median(found),
            "spread": [1000 * min(found), 1000 * max(found)],
            "times": sum(seconds[ways[0]]) / sum(found),
            "limit": operations / sum(found) / rate,
            "peak_mib": peak_mib(lambda way=way: learning.seconds(largest, way)),  # type: ignore[misc]
        }
        for way, found in seconds.items()
    ]


def useful(batches: Sequence[Mixed]) -> dict[str, float]:
    from megatron_af.model import length_groups

    own = sum(sum(batch.windows) for batch in batches)
    longest = sum(max(batch.windows) * len(batch.windows) for batch in batches)
    grouped = sum(
        len(group) * max(batch.windows[clip] for clip in group)
        for batch in batches
        for group in length_groups(batch.windows)
    )
    return {"public": own / longest, "longest": own / longest, "groups": own / grouped, "packed": own / grouped}


def tables(result: dict[str, Any]) -> list[Table]:
    """The result for the terminal."""
    columns = ("stream", "audio width", "way", "ms a step", "least … most", "times faster", "of the limit", "peak MiB")
    table = Table(*columns, title="a step")
    for row in result["rows"]:
        least, most = row["spread"]
        table.add_row(
            row["stream"], str(row["width"]), row["way"], f"{row['milliseconds']:.0f}", f"{least:.0f} … {most:.0f}",
            f"{row['times']:.2f}", f"{row['limit']:.0%}", f"{row['peak_mib']:.0f}",
        )  # fmt: skip
    shares = ", ".join(f"{way} {share:.0%}" for way, share in result["useful"].items())
    table.caption = f"useful positions of the transformation layers in the mixed stream: {shares}"
    return [table]
