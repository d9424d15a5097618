"""Rates are measured, and a step is planned and timed of the same batches; how close, the bench says."""

from dataclasses import replace
from typing import Any

import pytest

from megatron_af.bench import plan
from tests.distributed import run_distributed


def timed(rank: int, world_size: int) -> Any:
    from megatron_af.parallel import groups

    made = groups.initialize(plan.configuration(64).parallel, 0)
    plan.STEPS = 1
    config = plan.configuration(64)
    lm = replace(config.model.lm, hidden=64, layers=2, ffn=128)
    config = replace(config, model=replace(config.model, lm=lm))
    found = plan.rates()
    result = {"rates": found, "steps": {"small": plan.compare(config, found, made)}}
    twice = {name: (1 if name == "half rate keys" else 2) * value for name, value in found.items()}
    return result, plan.compare(config, twice, made)


@pytest.mark.slow
def test_a_step_is_planned_and_timed() -> None:
    ((result, faster),) = run_distributed(timed, 1)
    step = result["steps"]["small"]
    assert min(result["rates"].values()) > 0 and step["measured"] > 0
    assert faster["planned"] == pytest.approx(step["planned"] / 2), "a machine twice as fast takes half the time"
    told = plan.tables(result)
    assert [table.row_count for table in told] == [5, 1]


def test_settings_differ_in_what_learns_and_in_width() -> None:
    stages = {name: config.curriculum["step"].trainable for name, config in plan.settings().items()}
    assert len(set(stages.values())) == 2 and len(stages) == 3
