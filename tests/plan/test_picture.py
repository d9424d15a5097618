"""The time line is the plan's own, and its schedule is 1F1B."""

from itertools import pairwise
from pathlib import Path

import pytest

from megatron_af.plan.gpu import read_gpu
from megatron_af.plan.picture import bars, draw, one_forward_one_backward
from megatron_af.plan.planning import plan_run
from tests.plan.sized import runnable


@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 3), (2, 4), (4, 8), (4, 2)])
def test_the_schedule_takes_what_the_formula_says(stages: int, micro_batches: int) -> None:
    schedule = list(one_forward_one_backward([(1.0, 2.0)] * stages, micro_batches))
    # (m + p - 1) (f + b), Narayanan et al. 2021, section 2.2
    assert max(bar.end for bar in schedule) == 3 * (micro_batches + stages - 1)
    for stage in range(stages):
        own = sorted((bar.begin, bar.end) for bar in schedule if bar.stage == stage)
        assert len(own) == 2 * micro_batches
        assert all(end <= begin for (_, end), (begin, _) in pairwise(own)), "one pass at a time"


def test_a_stage_never_has_more_under_way_than_the_plan_of_memory_says() -> None:
    schedule = sorted(one_forward_one_backward([(1.0, 2.0)] * 4, 8), key=lambda bar: bar.begin)
    for stage in range(4):
        flying = most = 0
        for bar in schedule:
            if bar.stage == stage:
                flying += 1 if bar.what == "forward" else -1
                most = max(most, flying)
        assert most == 4 - stage


def test_bars_fill_the_step_and_are_drawn(tmp_path: Path) -> None:
    planned, _ = plan_run(runnable(pipeline=2), ["stage"], read_gpu("cpu"), 4, {}, most=0)
    found = bars(planned[0].plan)
    assert max(bar.end for bar in found) == pytest.approx(planned[0].plan.time.total)
    assert {bar.stage for bar in found} == {0, 1}
    for suffix in ("svg", "png"):
        draw(planned, tmp_path / f"plan.{suffix}")
    assert (tmp_path / "plan.svg").read_text().count("<path") > 20
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
