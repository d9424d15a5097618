"""A frozen language model's way back is timed beside a trained one's."""

from typing import Any

import pytest

from megatron_af.bench import frozen
from tests.distributed import run_distributed
from tests.told import Told


def timed(rank: int, world_size: int) -> dict[str, Any]:
    from megatron_af.parallel import groups

    models = frozen.settings(hidden=256, layers=3)
    frozen.ROUNDS = 3
    return frozen.compare(models, groups.initialize(models["frozen"].parallel, 0), Told())


@pytest.mark.slow
def test_both_ways_back_are_timed() -> None:
    (found,) = run_distributed(timed, 1)
    assert all(value > 0 for each in found["seconds"].values() for value in each.values())
    back = {name: each["backward"] for name, each in found["seconds"].items()}
    assert found["ratio"] == pytest.approx(back["frozen"] / back["trained"]) and found["ratio"] < 1
    (table,) = frozen.tables(found)
    assert table.row_count == 2 and table.caption


def test_they_differ_in_what_learns_alone() -> None:
    made = frozen.settings()
    assert made["trained"].model == made["frozen"].model
    assert {name: config.curriculum["step"].trainable for name, config in made.items()} == frozen.LEARNS
