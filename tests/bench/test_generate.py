"""What is timed decodes the same tokens, and the ratios are those of the numbers."""

from typing import Any

import pytest

from megatron_af.bench import generate
from megatron_af.config import ParallelConfig
from megatron_af.parallel import groups
from megatron_af.progress import silent
from tests import tiny
from tests.distributed import run_distributed

WAYS = {"3": (2.0, 20.0), "30": (3.0, 30.0)}
COST = {
    str(rows): {windows: {"cached": kept * rows / 8, "audio anew": anew} for windows, (kept, anew) in WAYS.items()}
    for rows in (1, 16)
}


def test_ratios_by_hand() -> None:
    found = generate.ratios({"demo": COST}, {"cached": 2.0, "rerun": 30.0})
    assert found == {
        "rerun / cached, 256 tokens": 15.0,
        "demo: 30 windows / 3": 1.5,
        "demo: audio anew / cached, 30 windows": 80.0,
        "demo: tokens/s of 16 rows / 1": 1.0,
    }
    result = {"cost": {"demo": COST}, "long": {"cached": 2.0, "rerun": 30.0}, "ratios": found}
    assert [table.row_count for table in generate.tables(result)] == [4, 2, 4]


def measured(rank: int, world_size: int) -> Any:
    groups.initialize(ParallelConfig(), 0)
    generate.WINDOWS, generate.BATCHES, generate.NEW, generate.LONG = (1, 2), (1, 2), 3, 5
    config = tiny.config()
    return generate._of_model(config, "tiny", silent()), generate._long_answer(config)


@pytest.mark.slow
def test_every_way_is_timed_for_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    ((cost, long),) = run_distributed(measured, 1)
    assert cost.keys() == {"1", "2"} and all(by.keys() == {"1", "2"} for by in cost.values())
    assert all(ms > 0 for by in cost.values() for ways in by.values() for ms in ways.values()) and long["rerun"] > 0


@pytest.mark.slow
def test_ways_that_differ_are_not_compared() -> None:
    import torch

    with pytest.raises(RuntimeError, match="different tokens"):
        generate._same(([torch.tensor([[1]])], [torch.tensor([[2]])]))
