"""What is timed computes the same, and the ratios are those of the numbers."""

import sys
from typing import Any

import pytest
import torch

from megatron_af.bench import generate
from megatron_af.config import ParallelConfig
from megatron_af.parallel import groups
from megatron_af.parallel.device import make_megatron_portable
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


def placed(rank: int, world_size: int) -> Any:
    """On a stand-in for an accelerator, where transformers is not installed."""
    make_megatron_portable(target="meta")
    sys.modules["transformers"] = None  # type: ignore[assignment]
    for name in [name for name in sys.modules if name.startswith("transformers.")]:
        del sys.modules[name]
    sys.modules.pop("megatron_af.bench.public_code", None)
    groups.initialize(ParallelConfig(), 0)
    decoding = generate.Decoding(tiny.config(tied=False))
    return sorted({weight.device.type for weight in decoding._lm.parameters()}), decoding.weight_bytes > 0


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing stands in for a GPU that is there")
def test_weights_lie_where_tokens_are_decoded() -> None:
    assert run_distributed(placed, 1) == [(["meta"], True)]


def drawn(rank: int, world_size: int) -> Any:
    groups.initialize(ParallelConfig(), 0)
    weights = dict(generate.Decoding(tiny.config(tied=False), in_place=True)._lm.named_parameters())
    return {name: (float(w.mean()), float(w.std()) if w.numel() > 1 else 0.0, w.dim()) for name, w in weights.items()}


@pytest.mark.slow
def test_weights_that_are_drawn_in_place_are_those_of_a_fresh_model() -> None:
    (weights,) = run_distributed(drawn, 1)
    for name, (mean, std, dims) in weights.items():
        if "gate_" in name:
            assert mean == 0.5
        elif dims > 1:
            assert std == pytest.approx(0.02, rel=0.2) and abs(mean) < 0.01
        else:
            assert (mean, std) == (float(name.endswith("weight")), 0.0)
