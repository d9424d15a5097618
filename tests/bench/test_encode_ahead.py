"""Both ways to bring audio to a pipeline's stages compute the same, whatever the number of stages, and are timed."""

from typing import Any

import pytest

from megatron_af.bench import encode_ahead
from tests.distributed import RankError, run_distributed

SMALL: dict[str, Any] = {"width": 64, "layers": 4}


@pytest.mark.slow
@pytest.mark.parametrize("stages", [2, 4])
def test_both_ways_compute_the_same_and_are_timed(stages: int) -> None:
    by_rank = run_distributed(encode_ahead.compared, stages, encode_ahead.settings(stages, **SMALL), (1, 2))
    rows = [{"stages": stages} | encode_ahead.busiest(found) for found in zip(*by_rank, strict=True)]
    assert [row["windows"] for row in rows] == [1, 2] and rows[0]["audio"] < rows[1]["audio"] < 1
    assert all(row["ahead"] > 0 and row["along"] > 0 for row in rows)
    (table,) = encode_ahead.tables({"rows": rows})
    assert table.row_count == 2


def lost_on_the_way(rank: int, world_size: int, part: str) -> None:
    """The other way with audio tokens, or their gradients, that do not come along."""
    forward = encode_ahead.SentAlong.forward

    def lost(stage: Any, *args: Any) -> Any:
        if stage._received is not None:
            received = stage._received
            audio = received[stage._length :]
            audio = audio * 0 if part == "tokens" else audio.detach()
            stage._received = encode_ahead.torch.cat([received[: stage._length], audio])
        return forward(stage, *args)

    encode_ahead.SentAlong.forward = lost  # type: ignore[method-assign]
    encode_ahead.compared(rank, world_size, encode_ahead.settings(world_size, **SMALL), (1,))


@pytest.mark.slow
@pytest.mark.parametrize(("part", "told"), [("tokens", "losses"), ("gradients", "gradients that differ")])
def test_ways_that_differ_are_not_compared(part: str, told: str) -> None:
    with pytest.raises(RankError, match=told):
        run_distributed(lost_on_the_way, 2, part)


def test_a_step_costs_what_its_busiest_rank_computes() -> None:
    ranks = [{"windows": 3, "audio": 0.5, "seconds": {"ahead": a, "along": b}} for a, b in ((1.0, 3.0), (2.0, 0.5))]
    assert encode_ahead.busiest(ranks) == {"windows": 3, "ahead": 2.0, "along": 3.0, "times": 1.5, "audio": 0.5}
