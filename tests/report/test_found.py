"""What is read of a run is what it left, by stage; intervals know what belongs together."""

from pathlib import Path

import numpy as np
import pytest

from megatron_af.config import Config
from megatron_af.report.found import intervals, read_run
from tests.report.conftest import STEPS


def test_a_run_is_read_by_stage(run: Config) -> None:
    found = read_run(Path(run.output) / run.name)
    assert found.config.name == run.name and [stage.name for stage in found.stages] == ["align", "long"]
    align, long = found.stages
    steps, losses = align.history.series("loss/train")
    assert steps.tolist() == list(range(1, STEPS + 1)) and losses[1] == 1.0
    assert align.step == STEPS and align.seconds == 90.0 and align.result["mfu"] == 0.125 and align.answers == {}
    assert long.scores["test"]["overall"]["n"] == len(long.answers["test"]) == 12
    assert long.clap["test"]["zero_shot"]["accuracy"] == 61.25
    assert [look.tokens for look in long.looks["test"]] == [("a", "<end>")]
    assert [record.step for record in found.steps] == ["align", "long"]


def test_a_run_that_was_moved_is_read_where_it_is(run: Config, tmp_path: Path) -> None:
    moved = (Path(run.output) / run.name).rename(tmp_path / "elsewhere")
    found = read_run(moved)
    assert found.stages[1].history.names("loss/") == ["loss/train"] and found.stages[1].answers["test"]


def test_nothing_trained_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no stage in it has a checkpoint"):
        read_run(tmp_path)


def test_questions_about_one_scene_are_no_independent_ones() -> None:
    right = np.arange(100) % 10 < 7
    alone = [{"skill": "s", "group": f"g{i}", "right": int(r)} for i, r in enumerate(right)]
    together = [{**told, "group": f"g{int(told['right'])}-{i % 3}"} for i, told in enumerate(alone)]
    (low, high), (wide_low, wide_high) = intervals(alone)["s"], intervals(together)["s"]
    assert low < 70 < high and 14 < high - low < 22
    assert wide_high - wide_low > 2 * (high - low)
    assert intervals([{"skill": "t", "group": "g", "right": 1}]) == {"t": (100.0, 100.0)}
