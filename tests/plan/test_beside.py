"""After ten steps the plan stands beside what was measured."""

import dataclasses
from typing import Any

import pytest

from megatron_af.parallel import groups as process_groups
from megatron_af.parallel.device import current_device
from megatron_af.plan.beside import BesidePlan
from megatron_af.plan.gpu import read_gpu
from megatron_af.plan.layouts import as_configured
from megatron_af.plan.lengths import lengths_of
from tests import tiny
from tests.distributed import run_distributed


def follow(rank: int, world: int) -> list[dict[str, float]]:
    groups = process_groups.initialize(tiny.config().parallel, 0)
    config = tiny.config()
    plan = as_configured(config, "stage", read_gpu("cpu"), 2, lengths_of(config, "stage", {}))

    @dataclasses.dataclass
    class Trainer:
        rank: int
        device: Any

    follower, trainer = BesidePlan(plan), Trainer(rank, current_device())
    records = []
    for step in range(1, 13):
        record = {"step": float(step), "memory_bytes": 1000.0 * (rank + 1)}
        if step > 3:  # the meter leaves its warm-up out
            record["step_seconds"] = float(step)
        follower.on_step(trainer, record)  # type: ignore[arg-type]
        records.append(record)
    process_groups.destroy()
    return [*records, {"needed": plan.needed, "seconds": plan.time.total, "groups": float(groups.data_size)}]


@pytest.mark.slow
def test_the_tenth_step_has_both() -> None:
    for found in run_distributed(follow, 2):
        plan, tenth = found[-1], found[9]
        assert tenth["planned/memory_bytes"] == plan["needed"] and tenth["planned/step_seconds"] == plan["seconds"]
        assert tenth["measured/memory_bytes"] == 2000 and tenth["measured/step_seconds"] == 7
        assert [step for step, record in enumerate(found[:-1], 1) if "planned/memory_bytes" in record] == [10]
