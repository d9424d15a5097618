"""A start is split where the first and the last step end; the run that is started is the demo's in small."""

from pathlib import Path

import pytest

from megatron_af.bench import start
from megatron_af.bench.start import made_run, split, tables
from megatron_af.config.loading import load_config
from megatron_af.runs.check import check
from tests.told import Told


def test_parts_add_up_to_what_passed_before_the_first_step_and_after_the_last() -> None:
    marks = [("interpreter", 12.0, 0.1), ("import", 15.0, 2.1), ("step", 16.0, 2.6), ("batch", 17.0, 2.7),
             ("step", 19.0, 3.0), ("saved", 19.5, 3.4), ("returned", 20.0, 3.5)]  # fmt: skip
    found = split(marks, 10.0, 23.0, launcher_seconds=1.5)
    first, last = found["to_first_step"], found["from_last_step"]
    assert [part["name"] for part in first["parts"]] == ["interpreter", "import", "step"]
    assert (first["wall"], first["cpu"]) == (6.0, pytest.approx(4.1)), "the launcher's processor time is counted"
    assert [part["name"] for part in last["parts"]] == ["saved", "returned", "exit"]
    assert [part["wall"] for part in last["parts"]] == [0.5, 0.5, 3.0]
    assert (last["wall"], last["cpu"]) == (4.0, pytest.approx(0.5))
    shown = tables(found | {"processes": 2, "load": 0.5})
    assert [table.row_count for table in shown] == [4, 4]


def test_the_run_is_the_demos_model(tmp_path: Path) -> None:
    config, demo = load_config(made_run(tmp_path)), load_config(start.ROOT / "configs/demo.yaml")
    assert config.model == demo.model and config.launch == demo.launch
    assert config.curriculum["align"].steps == start.STEPS > 1
    assert not check(config, config.launch.processes_per_node)


@pytest.mark.slow
def test_it_is_started_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "RUNS", 1)
    found = start.measure(tmp_path, Told())
    names = [part["name"] for part in found["to_first_step"]["parts"]]
    assert names[:3] == ["interpreter", "configuration read and checked", "import torch"]
    assert names[-3:] == ["optimizer and data", "batch", "step"] and {"groups", "model built", "plan"} <= set(names)
    ends = [part["name"] for part in found["from_last_step"]["parts"]]
    assert ends[:2] == ["checkpoint handed over", "checkpoint written"] and ends[-2:] == ["command returned", "exit"]
    for part in (*found["to_first_step"]["parts"], *found["from_last_step"]["parts"]):
        assert part["wall"] >= 0 and part["cpu"] >= 0, part
