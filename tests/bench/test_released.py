"""Sections of the GPU's bench on a toy: every way computes the same, and its figures are there."""

from dataclasses import replace
from typing import Any

import pytest

from megatron_af.bench import released
from megatron_af.config import Config
from tests import tiny
from tests.distributed import run_distributed

FIGURES = {"milliseconds", "tokens_a_second", "windows_a_second", "limit"}


def small(trainable: tuple[str, ...]) -> Config:
    config = tiny.config(trainable)
    stage = replace(config.curriculum["stage"], pack_tokens=96)
    return replace(config, curriculum={"stage": stage})


def measured(rank: int, world_size: int, trainable: tuple[str, ...]) -> Any:
    from megatron_af.parallel import groups

    released.WINDOWS, released.TOKENS, released.ROUNDS = (1, 2), (10, 40), 1
    released.WAYS = ("groups", "packed", "public")  # what is compiled has a test of its own
    made = groups.initialize(released.ParallelConfig(), 0)
    return released.steps(small(trainable), made, rate=1e9, samples=4)


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


def decoded(rank: int, world_size: int) -> Any:
    from megatron_af.parallel import groups

    groups.initialize(released.ParallelConfig(), 0)
    released.NEW = 4
    released.configuration = lambda file, stage: tiny.config(tied=False)
    return released.decoding("toy", 1e9, [(1, 1), (2, 2)])


@pytest.mark.slow
def test_tokens_stand_beside_reading_the_weights() -> None:
    (rows,) = run_distributed(decoded, 1)
    assert [(row["rows"], row["windows"]) for row in rows] == [(1, 1), (2, 2)]
    assert all(row["milliseconds"] > 0 and 0 < row["floor"] == rows[0]["floor"] for row in rows)
    assert [table.row_count for table in released.tables({}, {"toy": rows})] == [0, 2]
