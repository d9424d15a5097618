"""Every way of the model that is timed computes the same, by itself, padded, packed, and with its encoder."""

from typing import Any

import pytest

from megatron_af.bench import learning as module
from megatron_af.bench.learning import Mixed
from megatron_af.bench.same import check_same, without_corners
from megatron_af.config import ParallelConfig
from tests.distributed import run_distributed


def test_the_stream_is_mixed_as_it_says() -> None:
    drawn = [Mixed.draw(seed, 8) for seed in range(500)]
    windows = [count for batch in drawn for count in batch.windows]
    shares = [sum(low <= count <= high for count in windows) / len(windows) for low, high in ((1, 1), (2, 3), (4, 30))]
    assert shares == pytest.approx([0.6, 0.25, 0.15], abs=0.02)
    assert {min(n for b in drawn for n in b.tokens), max(n for b in drawn for n in b.tokens)} == {40, 200}
    shorter = [Mixed.draw(seed, 8, longest=7) for seed in range(500)]
    assert max(count for batch in shorter for count in batch.windows) == 7
    assert all(a.tokens == b.tokens for a, b in zip(drawn, shorter, strict=True)), "the same texts"


def computed(rank: int, world_size: int) -> Any:
    from megatron_af.parallel import groups

    learning = module.Learning(module.configuration(64), groups.initialize(ParallelConfig(), 0))
    batch = Mixed((1, 3, 1), (40, 90, 60))
    with without_corners():
        ways = {way: learning.computed(batch, way) for way in ("public", "groups", *module.LIVE)}
        return ways, {way: learning.reference(batch, way) for way in ways}, learning.operations(batch, "live")


@pytest.mark.slow
def test_every_way_is_float64_and_the_encoder_is_heard() -> None:
    ((ways, exact, live),) = run_distributed(computed, 1)
    for way, found in ways.items():
        check_same(found, exact[way])
        assert found.gradients.keys() == exact[way].gradients.keys()
    with pytest.raises(RuntimeError, match="two ways gave"):
        check_same(ways["live"], exact["public"])
    assert live > 0
