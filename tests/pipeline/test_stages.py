"""The exit gate: every bound that is not kept is told, and a name that nobody logs is a mistake."""

import math

import pytest

from megatron_af.config import BoundsConfig, Config, ConfigError, StageConfig
from megatron_af.pipeline.stages import ExitGateFailed, Step, hold_against_gate


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
