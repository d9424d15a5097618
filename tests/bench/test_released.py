"""Sections of the GPU's bench on a toy: every way computes the same, and its figures are there."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from megatron_af.bench import released
from megatron_af.bench.learning import Mixed
from megatron_af.config import Config
from megatron_af.parallel import groups
from tests import tiny
from tests.distributed import run_distributed

FIGURES = {"milliseconds", "tokens_a_second", "windows_a_second", "limit"}


def small(trainable: tuple[str, ...]) -> Config:
    config = tiny.config(trainable)
    stage = replace(config.curriculum["stage"], pack_tokens=96)
    return replace(config, curriculum={"stage": stage})


def measured(rank: int, world_size: int, trainable: tuple[str, ...]) -> Any:
    released.WINDOWS, released.TOKENS, released.ROUNDS = (1, 2), (10, 40), 1
    released.WAYS = ("groups", "packed", "public")  # what is compiled has a test of its own
    made = groups.initialize(released.ParallelConfig(), 0)
    return list(released.steps(small(trainable), made, rate=1e9, samples=4))


@pytest.mark.slow
def test_steps_with_a_cache_and_with_a_live_encoder() -> None:
    (cached,) = run_distributed(measured, 1, ("transform.*", "lm.*.xattn.*", "added_rows"))
    assert [(row["way"], row["windows"]) for row in cached] == [
        (way, windows) for way in ("groups", "packed", "public") for windows in (1, 2)
    ]
    (live,) = run_distributed(measured, 1, ("encoder.*", "transform.*", "lm.*.xattn.*", "added_rows"))
    assert [(row["way"], row["windows"]) for row in live] == [("live", 1), ("live", 2)]
    for row in (*cached, *live):
        assert row.keys() >= FIGURES and all(row[name] > 0 for name in FIGURES)
        assert ("planned_gib" in row) == (row["way"] != "public")
    more = [one["limit"] * one["milliseconds"] for one in (cached[2], live[0])]
    assert more[1] > 1.2 * more[0], "a live encoder is counted"
    tables = released.tables({"toy cached": cached, "toy live": [{**live[0], "problem": "out of memory"}]}, {})
    assert [table.row_count for table in tables] == [7, 0]


def test_a_batch_fills_the_row_of_a_released_stage() -> None:
    batch = released.batch_of(12)
    assert batch.windows == (12,) * 32 and min(batch.tokens) == 60 and max(batch.tokens) == 180
    config = released.configuration("af2_3b.yaml", released.CACHED)
    assert 0.9 < sum(batch.tokens) / config.curriculum["long"].pack_tokens <= 1
    assert not config.curriculum["long"].trains(released.ENCODER)
    assert config.curriculum[released.LIVE].trains(released.ENCODER)


def test_kernels_of_several_streams_count_once() -> None:
    assert sum(released.covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.0)])) == 4.0


PLAIN = """
import sys
for name in "tokenizers transformers safetensors soundfile soxr av pyarrow faiss mlflow pandas sklearn psutil".split():
    sys.modules[name] = None
sys.modules["nvidia.dali"] = None
from dataclasses import replace
from megatron_af.bench import released
from megatron_af.bench.learning import Mixed, configuration
from megatron_af.bench.machine import world

released.WINDOWS, released.TOKENS, released.ROUNDS, released.NEW = (1,), (10, 20), 1, 4
released.WAYS = ("packed", "public")
released.CACHED = "step"
config = configuration(64)
released.configuration = lambda file, stage: config
with world() as groups:
    rows = list(released.steps(config, groups, 1e9, samples=2))
with world():
    tokens = list(released.decoding("toy", 1e9, [(1, 1)]))
print([row["way"] for row in rows], "planned_gib" in rows[0], len(tokens))
"""


@pytest.mark.slow
def test_torch_and_megatron_core_are_enough() -> None:
    done = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[-2:] == ["['packed', 'public'] True 1", ""], done.stderr


def test_what_has_a_name_on_the_device_is_no_kernel() -> None:
    def event(name: str, kind: Any, begin: float, end: float, named: bool = False) -> Any:
        return SimpleNamespace(
            name=name, device_type=kind, time_range=SimpleNamespace(start=begin, end=end), is_user_annotation=named
        )

    events = [
        event("aten::mm", DeviceType.CPU, 0.0, 3.0),
        event("cudaStreamSynchronize", DeviceType.CPU, 3.0, 10.0),
        event("gemm", DeviceType.CUDA, 2.0, 4.0),
        event("Optimizer.step#AdamW.step", DeviceType.CUDA, 2.0, 9.0, named=True),
    ]
    assert released.told_by(events) == {"busy": 0.2, "waits": 1}


def seen(rank: int, world_size: int) -> Any:
    """Operations that a profile of a step holds, and what a second step finds drawn."""
    made = groups.initialize(released.ParallelConfig(), 0)
    learning = released.Learning(small(("transform.*", "lm.*.xattn.*", "added_rows")), made)
    batch, names = Mixed((2, 1), (20, 10)), []
    for _ in range(2):
        profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        learning.seconds(batch, "packed", profile)
        names.append({event.name for event in profile.events()})
    (features, _), (again, _) = learning._samples(batch), learning._samples(batch)
    features[0].sent = "a copy"
    same = features[0].data_ptr() == again[0].data_ptr() and not hasattr(again[0], "sent")
    drawn = [
        sum(learning._learner.flops(learning.batch(Mixed((w,), (n,)), way)) for w, n in ((2, 20), (1, 10)))
        for way in ("packed", "live")
    ]
    return names, same, [learning.operations(batch, way) for way in ("packed", "live")], drawn


@pytest.mark.slow
def test_a_profile_sees_the_step_alone() -> None:
    ((names, same, operations, drawn),) = run_distributed(seen, 1)
    for found in names:
        assert "aten::mm" in found and not found & {"aten::randn", "aten::normal_", "aten::randint"}
    assert same, "drawn once, and without the copy that another step sent"
    assert operations == drawn, "what is counted needs no values"


def uncompiled(rank: int, world_size: int) -> Any:
    released.WINDOWS, released.TOKENS, released.ROUNDS = (1,), (10, 40), 1
    released.WAYS = ("packed", "compiled", "public")
    released.compiler_problem = lambda: "no compiler"
    made = groups.initialize(released.ParallelConfig(), 0)
    return list(released.steps(small(("transform.*", "lm.*.xattn.*", "added_rows")), made, rate=1e9, samples=2))


@pytest.mark.slow
def test_without_a_compiler_the_other_ways_are_measured() -> None:
    (rows,) = run_distributed(uncompiled, 1)
    assert rows[1] == {"windows": 1, "way": "compiled", "problem": "no compiler"}
    assert [row["way"] for row in rows if "milliseconds" in row] == ["packed", "public"]


def broken(rank: int, world_size: int) -> Any:
    """What was measured, and what was raised, where one way of three cannot be had."""
    released.WINDOWS, released.TOKENS, released.ROUNDS = (1,), (10, 40), 1
    released.WAYS = ("groups", "packed", "public")
    step, rows = released._step, []

    def fail(config: Any, learning: Any, batch: Any, way: str, rate: float) -> Any:
        if way == "packed":
            raise ValueError("no kernel image is available")
        return step(config, learning, batch, way, rate)

    released._step = fail
    made = groups.initialize(released.ParallelConfig(), 0)
    try:
        rows.extend(released.steps(small(("transform.*", "lm.*.xattn.*", "added_rows")), made, 1e9, samples=2))
    except RuntimeError as error:
        return rows, str(error)


@pytest.mark.slow
def test_a_way_that_fails_leaves_the_others_measured() -> None:
    ((rows, told),) = run_distributed(broken, 1)
    assert rows[1] == {"windows": 1, "way": "packed", "problem": "failed: ValueError"}
    assert [row["way"] for row in rows if "milliseconds" in row] == ["groups", "public"]
    assert "in fail" in told and "ValueError: no kernel image is available" in told


def decoded(rank: int, world_size: int) -> Any:
    groups.initialize(released.ParallelConfig(), 0)
    released.NEW = 4
    released.configuration = lambda file, stage: tiny.config(tied=False)
    return list(released.decoding("toy", 1e9, [(1, 1), (2, 2)]))


@pytest.mark.slow
def test_tokens_stand_beside_reading_the_weights() -> None:
    (rows,) = run_distributed(decoded, 1)
    assert [(row["rows"], row["windows"]) for row in rows] == [(1, 1), (2, 2)]
    assert all(row["milliseconds"] > 0 and 0 < row["floor"] == rows[0]["floor"] for row in rows)
    assert [table.row_count for table in released.tables({}, {"toy": rows})] == [0, 2]
