"""The exit gate: every bound that is not kept is told, and a name that nobody logs is a mistake. A stage that fails."""

import math
from pathlib import Path

import pytest

from megatron_af.config import BoundsConfig, Config, ConfigError, DataConfig, DatasetConfig, StageConfig
from megatron_af.pipeline.job import StepFailed
from megatron_af.pipeline.stages import ExitGateFailed, Step, decide, hold_against_gate, train_stage
from megatron_af.tracking.runs import stage_spool
from megatron_af.tracking.spool import Address, Spool, read_spool


def gated(**bounds: BoundsConfig) -> Config:
    return Config(name="x", curriculum={"align": StageConfig(exit_gate=bounds)})


BOTH = gated(loss=BoundsConfig(max=2.0), accuracy=BoundsConfig(min=0.5))


@pytest.mark.parametrize(("loss", "accuracy"), [(2.0, 0.5), (0.0, 1.0)])
def test_a_bound_is_kept_at_its_edge(loss: float, accuracy: float) -> None:
    hold_against_gate(BOTH, "align", {"loss": loss, "accuracy": accuracy, "other": 9.0})


@pytest.mark.parametrize(
    ("loss", "accuracy", "told"),
    [
        (2.1, 0.6, ["loss = 2.1, expected at most 2"]),
        (1.0, 0.4, ["accuracy = 0.4, expected at least 0.5"]),
        (3.0, 0.4, ["loss = 3, expected at most 2", "accuracy = 0.4, expected at least 0.5"]),
        (math.nan, math.nan, ["loss = nan, expected at most 2", "accuracy = nan, expected at least 0.5"]),
    ],
)
def test_every_bound_that_is_not_kept_is_told(loss: float, accuracy: float, told: list[str]) -> None:
    with pytest.raises(ExitGateFailed, match=r"change curriculum\.align\.exit_gate") as failure:
        hold_against_gate(BOTH, "align", {"loss": loss, "accuracy": accuracy})
    assert f"exit gate: {'; '.join(told)}. " in str(failure.value) and failure.value.give_up


def test_a_name_that_nobody_logs_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"exit_gate\.los: nobody logs it.*loss"):
        hold_against_gate(gated(los=BoundsConfig(max=1.0)), "align", {"loss": 0.5})


def test_a_step_says_what_and_why() -> None:
    assert str(Step(stage="align", action="skip", why="done: step_9")) == "align        skip    done: step_9"


class Away(StepFailed):
    goes_on = True


@pytest.mark.parametrize(
    ("failure", "closed", "ends"),
    [
        (StepFailed("out of memory"), False, [("FAILED", "died without a word after step 7")]),
        (StepFailed("exit code 1"), True, [("FAILED", "failed")]),
        (Away("the API server does not answer"), False, []),
    ],
)
def test_a_run_ends_with_a_job_that_left_nobody_to_say_so(
    tmp_path: Path, failure: StepFailed, closed: bool, ends: list[tuple[str, str]]
) -> None:
    """A container that is out of memory ends with all its processes: the run in MLflow would be RUNNING for ever."""
    (tmp_path / "text.jsonl").write_text("{}\n")
    data = DataConfig(root=str(tmp_path), datasets={"text": DatasetConfig(manifest="text.jsonl")})
    stage = StageConfig(steps=9, trainable=("*",), blend={"text": 1.0})
    config = Config(name="toy", output=str(tmp_path), data=data, curriculum={"align": stage})
    folder = stage_spool(config, "align", decide(config, "align").inputs)

    def launch(tool: str) -> None:
        spool = Spool(folder)
        spool.open(Address(uri="http://127.0.0.1:9", experiment="e", name="align"), params={}, tags={}, texts={})
        spool.metrics(7, {"loss": 2.0})
        if closed:
            spool.end("FAILED", "failed")
        raise failure

    with pytest.raises(StepFailed):
        train_stage(config, "align", launch, lambda line: None)
    told = [(record["status"], record["reason"]) for record, _ in read_spool(folder) if record["kind"] == "close"]
    assert told == ends
