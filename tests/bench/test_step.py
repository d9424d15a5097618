"""The ways of a step compute the same before they are timed, and what they are told as."""

from typing import Any

import pytest

from megatron_af.bench import step
from megatron_af.bench.learning import Mixed
from megatron_af.config import ParallelConfig
from tests.distributed import run_distributed


def test_groups_leave_little_padding() -> None:
    useful = step.useful([Mixed.draw(seed, 8) for seed in range(500)])
    assert useful["longest"] < 0.35 and useful["groups"] > 0.9


def measured(rank: int, world_size: int, precision: str) -> Any:
    from megatron_af.parallel import groups

    learning = step.Learning(step.configuration(64, precision), groups.initialize(ParallelConfig(), 0))
    batches = [Mixed((1, 3, 1), (40, 90, 60)), Mixed((2, 1, 1), (50, 40, 45))]
    return step.compared(learning, batches, step.WAYS, 1e9), step.compared(learning, batches, step.LIVE_WAYS, 1e9)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_way_computes_the_same_and_is_timed(precision: str) -> None:
    """The public way, too, and again after a step of each; in bf16 as on a GPU."""
    ((found, live),) = run_distributed(measured, 1, precision)
    assert [row["way"] for row in found] == list(step.WAYS) and [row["way"] for row in live] == list(step.LIVE_WAYS)
    for row in (*found, *live):
        least, most = row["spread"]
        assert 0 < least <= row["milliseconds"] <= most and row["limit"] > 0 and row["peak_mib"] > 1
    assert found[0]["times"] == live[0]["times"] == 1.0
    rows = [{"stream": "mixed", "width": 64} | row for row in found]
    assert [t.row_count for t in step.tables({"rows": rows, "useful": dict.fromkeys(step.WAYS, 1.0)})] == [4]
