"""Several ranks' observations become one; ranks that disagree are told; a run is set back to a checkpoint."""

from pathlib import Path

import pytest

from megatron_af.config import Config
from megatron_af.prove.observe import Observation, joined, rewound
from megatron_af.runs.paths import latest


def test_samples_are_in_the_order_of_the_global_batch() -> None:
    ranks = [Observation(numbers={1: {"loss": 2.0}}, samples={1: {rank: (f"a{rank}", f"b{rank}")}}) for rank in (1, 0)]
    assert joined(ranks).order(1) == ["a0", "b0", "a1", "b1"]


def test_ranks_with_other_numbers_are_told() -> None:
    ranks = [Observation(numbers={1: {"loss": 2.0, "tokens": 3.0 + rank}}) for rank in range(2)]
    with pytest.raises(ValueError, match=r"step 1: rank 1 has tokens = 4\.0, rank 0 has 3\.0"):
        joined(ranks)


def test_a_run_goes_on_behind_the_step_it_is_set_back_to(tmp_path: Path) -> None:
    config = Config(name="x", output=str(tmp_path), stage="a")
    folder = config.stage_folder("a") / "checkpoints"
    for step in (2, 4):
        (folder / f"step_{step:08d}").mkdir(parents=True)
        (folder / f"step_{step:08d}" / "checkpoint.json").write_text("{}")
    (folder / "latest").write_text("step_00000004")
    assert rewound(config, 2) is config
    assert latest(folder) == folder / "step_00000002" and len(list(folder.glob("step_*"))) == 1
