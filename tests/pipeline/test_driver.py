"""The steps of a pipeline one after another: in order, until one fails, with a report in any case."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from megatron_af.config import Config, StageConfig, TrackingConfig
from megatron_af.entry import Cancelled
from megatron_af.pipeline import driver
from megatron_af.pipeline.driver import drive
from megatron_af.pipeline.job import StepFailed
from megatron_af.pipeline.records import Launch, RunFolder, RunRecord


class Steps:
    """Takes the place of what runs a step and of what ends a run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.states: list[str] = []
        self.trouble: dict[str, BaseException] = {}
        monkeypatch.setattr(driver, "run_step", self.run)
        monkeypatch.setattr(driver, "finish", self.finish)

    def run(self, name: str, *rest: Any) -> None:
        self.ran.append(name)
        if name in self.trouble:
            raise self.trouble[name]

    def finish(self, config: Config, launch: Launch, state: str, run: Any) -> str:
        self.states.append(state)
        assert run is None, "nothing is tracked here"
        return f"report of {launch.run}"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    tracking = TrackingConfig(enabled=False)
    curriculum = {"lm": StageConfig(), "align": StageConfig(entry={"lm": "lm"})}
    return Config(name="demo", output=str(tmp_path), curriculum=curriculum, tracking=tracking)


PLACE: Any = None


def test_all_steps_in_their_order(config: Config, steps: Steps) -> None:
    assert drive(config, Launch(run="r1"), PLACE) == "report of r1"
    assert steps.ran == ["prepare", "lm", "align", "register", "gate", "promote"]
    assert steps.states == ["SUCCEEDED"]
    record = RunFolder(config).run()
    assert record is not None and record.launch.run == "r1" and record.pid == os.getpid()


def test_a_step_that_fails_is_the_last_one(config: Config, steps: Steps) -> None:
    steps.trouble["lm"] = StepFailed("no")
    with pytest.raises(StepFailed, match="no"):
        drive(config, Launch(run="r1"), PLACE)
    assert steps.ran == ["prepare", "lm"] and steps.states == ["FAILED"]


def test_a_signal_cancels_the_run_and_its_report_says_so(
    config: Config, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(name: str, *rest: Any) -> None:
        steps.ran.append(name)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(driver, "run_step", stop)
    with pytest.raises(Cancelled):
        drive(config, Launch(run="r1"), PLACE)
    assert steps.ran == ["prepare"] and steps.states == ["CANCELLED"]


def test_chosen_steps_alone(config: Config, steps: Steps) -> None:
    drive(config, Launch(run="r1"), PLACE, names=["align"])
    assert steps.ran == ["align"]


def test_a_second_driver_of_one_run_is_refused(config: Config, steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    drive(config, Launch(run="r1"), PLACE)

    class Alive:
        pid = 4711

    monkeypatch.setattr(RunRecord, "driver", lambda self: Alive())
    with pytest.raises(StepFailed, match="r1 is still running as process 4711"):
        drive(config, Launch(run="r2"), PLACE)
    last = RunFolder(config).run()
    assert last is not None and last.launch.run == "r1"
