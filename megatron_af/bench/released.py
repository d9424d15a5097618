"""Released sizes on one GPU: steps of their stages, and tokens of answers. Sections of ``bench/gpu.py``.

    with world() as groups:
        rows = steps(configuration("af2_3b.yaml", "long"), groups, rate)
        tokens = decoding("af2_3b.yaml", bytes_a_second)

A step is one micro-batch of one rank, optimizer included, as the configuration's stage trains it. ``groups`` has a text
row a sample, ``packed`` as many samples in a row as the stage packs, ``compiled`` the same with ``compile: true``; all
three read features from a cache. ``live`` is packed, and its mel goes through the encoder. ``public`` is the public
code's way of the same batch (``public_way.py``). Ways must give the same loss before they are timed. ``limit`` is what
the samples need without padding over what a large matrix product computes in that time. A token of an answer can take
no less than reading every weight once.
"""

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from rich.table import Table

from megatron_af.bench.generate import Decoding
from megatron_af.bench.learning import Learning, Mixed
from megatron_af.bench.same import ROUNDED_LOSS
from megatron_af.config import Config, ParallelConfig
from megatron_af.config.loading import CONFIGS, load_config
from megatron_af.parallel.device import compiler_problem, current_device

SIZES = {"0.5B": "af2_0.5b.yaml", "3B": "af2_3b.yaml"}
WINDOWS = (3, 12, 30)
SAMPLES, TOKENS = 32, (60, 180)
"""Texts are that long: a micro-batch fills a row of 4,096."""
ENCODER = "encoder.norm.weight"
CACHED, LIVE = "long", "finetune"
"""Stages: with a frozen encoder, whose features a cache has, and with one that trains."""
WAYS = ("groups", "packed", "compiled", "public")
"""The last one takes a copy of the weights."""
ROUNDS = 3
DECODED = ((1, 3), (1, 30), (16, 3), (16, 30))
"""Rows and windows of what is answered."""
NEW = 24


def configuration(file: str, stage: str) -> Config:
    """One rank's part of a configuration: nothing is split."""
    return replace(load_config(CONFIGS / file, [f"stage={stage}"]), parallel=ParallelConfig())


def batch_of(windows: int, samples: int = SAMPLES) -> Mixed:
    shortest, longest = TOKENS
    lengths = tuple(shortest + (longest - shortest) * place // max(1, samples - 1) for place in range(samples))
    return Mixed((windows,) * samples, lengths)


def steps(config: Config, groups: Any, rate: float, samples: int = SAMPLES) -> Iterator[dict[str, Any]]:
    """As they are measured, by way and windows: ``milliseconds`` (median), ``tokens_a_second``, ``windows_a_second``
    and ``limit``, and on a GPU ``busy`` (part of the time in which kernels ran), ``waits`` (for the device) and
    ``peak_gib``, beside ``planned_gib``. A way that memory did not suffice for, or that no compiler is there for, has
    ``problem`` alone.

    Raises:
        RuntimeError: behind all others, what was raised by a way, as by one whose loss differs by more than rounding.
    """
    failed: list[str] = []
    learning = Learning(_standing_still(config), groups, in_place=True)
    losses: dict[int, float] = {}
    for way in ("live",) if config.curriculum[config.stage].trains(ENCODER) else WAYS:
        if way == "compiled":
            if problem := compiler_problem():
                yield from ({"windows": windows, "way": way, "problem": problem} for windows in WINDOWS)
                continue
            learning.compile_layers()
        run = "packed" if way == "compiled" else way
        for windows in WINDOWS:
            batch, row = batch_of(windows, samples), {"windows": windows, "way": way}
            _forget_peak()
            try:
                loss = learning.loss(batch, run)
                if abs(loss - losses.setdefault(windows, loss)) > ROUNDED_LOSS * abs(loss):
                    raise RuntimeError(f"{way} gave a loss of {loss}, {WAYS[0]} one of {losses[windows]}")
                row |= _step(config, learning, batch, way, rate)
            except torch.OutOfMemoryError:
                row |= {"problem": "out of memory"}
            except Exception as error:  # a compiler's, a kernel's: the others are measured nevertheless
                row |= {"problem": f"failed: {type(error).__name__}"}
                failed.append(traceback.format_exc())
            yield row
    if failed:
        raise RuntimeError("\n".join(failed))


def _standing_still(config: Config) -> Config:
    """With a rate at which no weight moves: every way then finds the same ones."""
    stage = config.curriculum[config.stage]
    stage = replace(stage, optimizer=replace(stage.optimizer, learning_rate=1e-12))
    return replace(config, curriculum={config.stage: stage})


def _step(config: Config, learning: Learning, batch: Mixed, way: str, rate: float) -> dict[str, Any]:
    run = "packed" if way == "compiled" else way
    learning.seconds(batch, run)  # what is allocated and tuned once
    taken = median(learning.seconds(batch, run) for _ in range(ROUNDS))
    found = {
        "milliseconds": 1000 * taken,
        "tokens_a_second": sum(batch.tokens) / taken,
        "windows_a_second": sum(batch.windows) / taken,
        "limit": learning.operations(batch, run) / taken / rate,
        **profiled(lambda within: learning.seconds(batch, run, within)),
    }
    if way == "public":
        found.pop("peak_gib", None)  # ours lie beside its weights
        return found
    return found | {"planned_gib": _planned(config, learning, batch, run) / 2**30}


def _planned(config: Config, learning: Learning, batch: Mixed, way: str) -> float:
    """Bytes, without what a data pipeline has waiting."""
    from megatron_af.plan.case import Case
    from megatron_af.plan.gpu import read_gpu
    from megatron_af.plan.load import load_of
    from megatron_af.plan.memory import memory

    made = learning.batch(batch, way)
    load = load_of(made.audio, made.text, config.model.encoder.tokens_per_window)
    config = replace(config, layers=current_device().layers(config.layers))
    case = Case(config=config, gpu=read_gpu("h100"), world=1)
    return memory(case, 0, replace(load, encoded=float(way == "live")), ahead=0).total


def profiled(work: Callable[[AbstractContextManager[object]], object]) -> dict[str, float]:
    """Where there is a GPU: what its events tell, and its memory's peak.

    Args:
        work: enters what it is given around what is to be seen.
    """
    if not current_device().is_gpu:
        work(nullcontext())
        return {}
    from torch.profiler import ProfilerActivity, profile

    seen: Any = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
    work(seen)
    return told_by(seen.events()) | {"peak_gib": torch.cuda.max_memory_allocated() / 2**30}


def told_by(events: Sequence[Any]) -> dict[str, float]:
    """The part of the time in which kernels ran, and waits for the device."""
    from torch.autograd import DeviceType  # type: ignore[attr-defined]

    # A block with a name (a step of torch's optimizers, a compiled region) shows on the device, too, pauses included.
    spans = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    whole = max(event.time_range.end for event in events) - min(event.time_range.start for event in events)
    return {
        "busy": sum(covered((event.time_range.start, event.time_range.end) for event in spans)) / whole,
        "waits": sum(event.name in ("cudaStreamSynchronize", "cudaDeviceSynchronize") for event in events),
    }


def covered(spans: Iterable[tuple[float, float]]) -> Iterator[float]:
    """Lengths of what the spans cover together, kernels of several streams counted once."""
    reached = float("-inf")
    for begin, end in sorted(spans):
        yield max(0.0, end - max(begin, reached))
        reached = max(reached, end)


def _forget_peak() -> None:
    if current_device().is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def decoding(file: str, bytes_a_second: float, asked: Sequence[tuple[int, int]] = DECODED) -> Iterator[dict[str, Any]]:
    """As they are measured, by rows and windows: ``milliseconds`` a token of all rows together, and ``floor``: reading
    the weights once."""
    engine = Decoding(configuration(file, CACHED), in_place=True)
    floor = 1000 * engine.weight_bytes / bytes_a_second
    for batch, windows in asked:
        seconds, _, _ = engine.cached(batch, windows, NEW)
        taken = 1000 * median(seconds[len(seconds) // 4 :])  # the first ones meet kernels for the first time
        yield {"rows": batch, "windows": windows, "milliseconds": taken, "floor": floor}


def tables(stepped: dict[str, list[dict[str, Any]]], decoded: dict[str, list[dict[str, Any]]]) -> list[Table]:
    """By size, for the terminal."""
    columns = ("size", "windows", "way", "ms", "tok/s", "windows/s", "of the limit", "busy", "waits", "GiB", "planned")
    table = Table(*columns, title="a step of one micro-batch")
    for size, rows in stepped.items():
        for row in rows:
            of = [_shown(row, *cell) for cell in CELLS]
            table.add_row(size, str(row["windows"]), row["way"], *([row["problem"]] if "problem" in row else of))
    tokens = Table("size", "rows", "windows", "ms a token", "weights read once, ms", title="decoding")
    for size, rows in decoded.items():
        for row in rows:
            figures = (f"{row[name]:.2f}" for name in ("milliseconds", "floor"))
            tokens.add_row(size, str(row["rows"]), str(row["windows"]), *figures)
    return [table, tokens]


CELLS = (
    ("milliseconds", ".1f"), ("tokens_a_second", ",.0f"), ("windows_a_second", ",.0f"), ("limit", ".0%"),
    ("busy", ".0%"), ("waits", ".0f"), ("peak_gib", ".1f"), ("planned_gib", ".1f"),
)  # fmt: skip


def _shown(row: dict[str, Any], name: str, format_spec: str) -> str:
    return format(row[name], format_spec) if name in row else ""
