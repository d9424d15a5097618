"""What a pipeline leaves on disk comes back as it was, and a driver is known from a process with its number."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from megatron_af.config import Config, StageConfig
from megatron_af.config.as_json import to_json
from megatron_af.config.loading import load_config
from megatron_af.pipeline import records
from megatron_af.pipeline.records import DONE, Launch, RunFolder, RunRecord, StepRecord, new_run

LAUNCH = Launch(run="r-1", attempt=2, pipeline="curriculum")


def config(folder: Path) -> Config:
    return Config(name="x", output=str(folder), curriculum={"align": StageConfig(), "tune": StageConfig()})


def test_steps_come_back_in_order_of_their_names(tmp_path: Path) -> None:
    folder = RunFolder(config(tmp_path))
    assert folder.step("align") is None and list(folder.steps()) == [] and folder.run() is None
    tune = StepRecord(step="tune", launch=LAUNCH, reads="sha256:1", state=DONE, started=5.0, ended=7.5, restarts=1)
    align = StepRecord(step="align", launch=LAUNCH, reads="", error="no", give_up=True)
    folder.write_step(tune)
    folder.write_step(align)
    assert list(folder.steps()) == [align, tune] and folder.step("tune") == tune and tune.seconds == 2.5
    assert time.time() - align.started < 60 and 0 <= align.seconds < 60
    assert folder.log("align") == tmp_path / "x/pipeline/logs/align.log"


def test_the_run_comes_back_with_its_configuration_and_steps(tmp_path: Path) -> None:
    settings = config(tmp_path)
    folder = RunFolder(settings)
    record = RunRecord(launch=LAUNCH, config=to_json(settings), steps=("align",), cluster="{}")
    folder.write_run(record)
    found = folder.run()
    assert found == record and found.read_config() == settings
    assert [spec.name for spec in found.graph()] == ["align"]
    whole = RunRecord(launch=LAUNCH, config=to_json(settings)).graph()
    assert len(whole) > 2 and {"align", "tune"} <= {spec.name for spec in whole}
    assert load_config(folder.write_config(settings)) == settings


def test_a_driver_is_another_living_process_that_began_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def driver(
        pid: int, *, began: float = 10.0, status: str = psutil.STATUS_RUNNING, gone: bool = False, host: str = ""
    ) -> bool:
        def process(number: int) -> SimpleNamespace:
            if gone:
                raise psutil.NoSuchProcess(number)
            return SimpleNamespace(pid=number, create_time=lambda: began, status=lambda: status)

        monkeypatch.setattr(records.psutil, "Process", process)
        of_host = {"host": host} if host else {}
        return RunRecord(launch=LAUNCH, config="{}", pid=pid, started=20.0, **of_host).driver() is not None

    assert driver(1) and driver(1, began=20.0)
    assert not driver(0) and not driver(os.getpid())
    assert not driver(1, gone=True) and not driver(1, status=psutil.STATUS_ZOMBIE)
    assert not driver(1, began=20.1), "another process has its number by now"
    assert not driver(1, host="another"), "what has its number here is somebody else's"


def test_two_runs_of_one_second_have_two_names() -> None:
    names = {new_run() for _ in range(50)}
    assert len(names) > 45 and all(name[8] == name[15] == "-" and len(name) == 20 for name in names)
