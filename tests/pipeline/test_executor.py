"""What happens before the first step of a pipeline."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import Config, DataConfig, StageConfig
from megatron_af.pipeline.executor import ThisMachine, run_step
from megatron_af.pipeline.graph import pipeline_steps
from megatron_af.pipeline.job import Job, StepFailed
from megatron_af.pipeline.records import DONE, FAILED, Launch, RunFolder, StepRecord
from megatron_af.tracking.runs import curriculum_spool
from megatron_af.tracking.spool import Address


class Nowhere(ThisMachine):
    """Runs nothing, and says so."""

    def run(self, job: Job, say: object) -> int:
        raise AssertionError(f"{job.name} was started")


class Quiet(ThisMachine):
    """Does nothing, well."""

    def run(self, job: Job, say: object) -> int:
        return 0


def test_a_step_inside_a_pipelines_mlflow_run_hangs_the_stages_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(name="toy", output=str(tmp_path), data=DataConfig(root=str(tmp_path)), curriculum={})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    spool = curriculum_spool(config)
    run_step("prepare", config, Launch(run="r-0"), Quiet(config), lambda line: None)
    assert not (spool / "run.json").exists(), "no run around it"
    for seed, task in enumerate(("task-1", "task-2"), start=1):
        # Each step has a run of its own; the first counts, and all lie below one pipeline.
        monkeypatch.setenv("MLFLOW_RUN_ID", task)
        run_step("prepare", replace(config, seed=seed), Launch(run=task), Quiet(config), lambda line: None)
        assert Address.load(spool).adopt == "task-1"


class Talking(ThisMachine):
    """Says what a stage says on its way, and fails with a message of several lines."""

    def run(self, job: Job, say: Callable[[str], None]) -> int:
        say(f"[{job.name} 0] step 1/2 50.0% | loss 2.5 | tok/s 1,200 | eta 0:02")
        say(f"[{job.name} 0] step 2/2 100.0% | loss 0.25 | tok/s 1,300 | eta 0:00")
        if job.name == "gate":
            raise StepFailed("refused:\n  hears: 0.1\n  answers: 7 s")
        return 2


def test_a_step_tells_how_far_it_came_and_every_line_carries_its_name(tmp_path: Path) -> None:
    config = Config(name="toy", output=str(tmp_path), data=DataConfig(root=str(tmp_path)), curriculum={})
    metrics = run_step("register", config, Launch(run="r-1"), Talking(config), lambda line: None)
    seconds = metrics.pop("seconds")
    assert metrics == {"restarts": 2.0, "step": 2.0, "loss": 0.25, "tokens_per_second": 1300.0} and seconds >= 0
    record = RunFolder(config).step("register")
    assert record is not None and record.progress == "step 2/2, loss 0.25, 1,300 tok/s, eta 0:00"
    said: list[str] = []
    with pytest.raises(StepFailed):
        run_step("gate", config, Launch(run="r-1"), Talking(config), said.append)
    told = "\n".join(said).splitlines()
    assert [line for line in told if "hears" in line or "answers" in line] == [
        "[gate]   hears: 0.1", "[gate]   answers: 7 s",
    ]  # fmt: skip
    logged = RunFolder(config).log("gate").read_text().splitlines()
    assert [line for line in logged if not line.startswith("[gate")] == []


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


@pytest.mark.parametrize(("name", "begun"), [("evaluate-lm", 2), ("prepare", 1)])
def test_a_command_is_run_again_after_what_it_waits_for(tmp_path: Path, name: str, begun: int) -> None:
    """What is registered are the newest weights, and a step beside it changes nothing."""
    stage = StageConfig(evaluation=("text",), blend={"text": 1.0})
    config = Config(name="toy", output=str(tmp_path), data=DataConfig(root=str(tmp_path)), curriculum={"lm": stage})
    said: list[str] = []

    def registered(run: str) -> int:
        run_step("register", config, Launch(run=run), Quiet(config), said.append)
        return sum(line.startswith("[register] done in") for line in said)

    assert (registered("r-1"), registered("r-2")) == (1, 1)
    spec = next(spec for spec in pipeline_steps(config, "curriculum") if spec.name == name)
    again = StepRecord(step=name, launch=Launch(run="r-3"), reads=spec.reads, state=DONE)
    RunFolder(config).write_step(replace(again, ended=again.started))
    assert registered("r-3") == begun
