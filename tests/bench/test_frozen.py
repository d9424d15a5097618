"""A frozen language model's way back is timed beside a trained one's."""

from pathlib import Path

import pytest
import torch

from megatron_af.bench import frozen
from tests.told import Told


@pytest.mark.slow
def test_both_ways_back_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "ROUNDS", 3)
    torch.manual_seed(0)
    found = frozen.measure(tmp_path, Told(), frozen.settings(hidden=256, layers=3))
    assert all(value > 0 for each in found["seconds"].values() for value in each.values())
    back = {name: each["backward"] for name, each in found["seconds"].items()}
    assert found["ratio"] == pytest.approx(back["frozen"] / back["trained"]) and found["ratio"] < 1
    (table,) = frozen.tables(found)
    assert table.row_count == 2 and table.caption


def test_they_differ_in_what_learns_alone() -> None:
    made = frozen.settings()
    assert made["trained"].model == made["frozen"].model
    assert {name: config.curriculum["step"].trainable for name, config in made.items()} == frozen.LEARNS
