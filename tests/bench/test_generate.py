"""What is timed computes the same, and the ratios are those of the numbers."""

from typing import Any

import pytest

from megatron_af.bench import generate
from megatron_af.config import ParallelConfig
from megatron_af.parallel import groups
from megatron_af.progress import silent
from tests import tiny
from tests.distributed import RankError, run_distributed

COST = {
    "1": {"3": {"cached": 2.0, "public": 20.0}, "30": {"cached": 3.0, "public": 240.0}},
    "16": {"3": {"cached": 4.0}, "30": {"cached": 6.0}},
}


def test_ratios_by_hand() -> None:
    long = {"demo": {"cached": 2.0, "rerun": 30.0}}
    found = generate.ratios({"demo": COST}, long)
    assert found == {
        "demo: 30 windows / 3": 1.5,
        "demo: public code / cached, 30 windows": 80.0,
        "demo: tokens/s of 16 rows / 1": 8.0,
        "demo: rerun / cached, 256 tokens": 15.0,
    }
    result = {"cost": {"demo": COST}, "long": long, "ratios": found}
    assert [table.row_count for table in generate.tables(result)] == [4, 2, 4]


def measured(rank: int, world_size: int, spoil: str) -> Any:
    groups.initialize(ParallelConfig(), 0)
    generate.WINDOWS, generate.BATCHES, generate.NEW, generate.LONG, generate.PLACES = (1, 2), (1, 2), 3, 6, 3
    decoding = generate.Decoding(tiny.config(tied=False))
    if spoil == "keys":  # the public code would hear something else
        decoding._public.model.layers[1].audio_attention.k_proj.weight.data *= 2
    if spoil == "text":  # and whoever reads again something else
        rerun = decoding.rerun
        decoding.rerun = lambda windows, tokens: rerun(windows, [*tokens[:-1], tokens[-1] * 0 + 88])  # type: ignore[method-assign]
    return generate._of_model(decoding, "tiny", silent()), generate._long_answer(decoding)


@pytest.mark.slow
def test_every_way_is_timed_and_computes_the_same() -> None:
    ((cost, long),) = run_distributed(measured, 1, "")
    assert cost.keys() == {"1", "2"} and all(by.keys() == {"1", "2"} for by in cost.values())
    assert all(ms > 0 for by in cost.values() for ways in by.values() for ms in ways.values())
    assert all("public" in ways for ways in cost["1"].values()) and long["rerun"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("spoil", ["keys", "text"])
def test_ways_that_differ_are_not_compared(spoil: str) -> None:
    with pytest.raises(RankError, match="of their spread apart: their costs cannot be compared"):
        run_distributed(measured, 1, spoil)
