"""What happens before the first step of a pipeline."""

from pathlib import Path

import pytest

from megatron_af.config import Config, DataConfig, StageConfig
from megatron_af.pipeline.executor import ThisMachine, run_step
from megatron_af.pipeline.job import Job, StepFailed
from megatron_af.pipeline.records import FAILED, Launch, RunFolder


class Nowhere(ThisMachine):
    """Runs nothing, and says so."""

    def run(self, job: Job, say: object) -> int:
        raise AssertionError(f"{job.name} was started")


def test_the_head_refuses_what_a_later_step_would_miss(tmp_path: Path) -> None:
    config = Config(
        name="toy",
        output=str(tmp_path),
        data=DataConfig(root=str(tmp_path)),
        curriculum={"clap": StageConfig(objective="contrastive"), "align": StageConfig(entry={"lm": "converted/qwen"})},
    )
    launch, place = Launch(run="r-1"), Nowhere(config)
    with pytest.raises(StepFailed, match=r"- curriculum\.align\.entry\.lm = converted/qwen: neither") as failure:
        run_step("prepare", config, launch, place, lambda line: None)
    assert failure.value.give_up
    record = RunFolder(config).step("prepare")
    assert record is not None and record.state == FAILED
    with pytest.raises(AssertionError, match="register was started"):  # a release trains nothing
        run_step("register", config, Launch(run="r-2", pipeline="promote"), place, lambda line: None)
