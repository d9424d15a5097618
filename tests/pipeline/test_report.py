"""How a pipeline stands, in one table and in a file."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_af.config import Config
from megatron_af.pipeline.records import DONE, FAILED, Launch, RunFolder, StepRecord
from megatron_af.pipeline.report import clock, stamp, table, write_report

LAUNCH = Launch(run="r-2", pipeline="demo")
STEPS: Any = [SimpleNamespace(name=name) for name in ("prepare", "align", "tune")]


def record(step: str, run: str = "r-2", **changes: Any) -> StepRecord:
    values = {"step": step, "launch": Launch(run=run), "reads": "", "state": DONE, "started": 100.0, "ended": 141.0}
    return StepRecord(**values | changes)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3599.6, "1 h 00 min"),
     (93_900, "26 h 05 min")],
)  # fmt: skip
def test_times_are_said_as_people_do(seconds: float, said: str) -> None:
    assert clock(seconds) == said


def test_a_moment_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    assert stamp(0) == "1970-01-01 02:00:00"
    monkeypatch.delenv("TZ")
    time.tzset()


def test_a_row_per_step_in_the_pipelines_order() -> None:
    records = {
        "align": record("align", state=FAILED, restarts=2, progress="step 3/9", ended=0.0, started=time.time() - 5),
        "prepare": record("prepare", run="r-1"),
    }
    head, rule, *rows = table(STEPS, records, LAUNCH)
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells == [
        ["prepare", "done (earlier run)", "41 s", "0", ""],
        ["align", "failed", "5 s", "2", "step 3/9"],
        ["tune", "waiting", "", "", ""],
    ]
    assert len({len(line) for line in (head, rule, *rows)}) == 1


def test_the_report_names_what_failed_and_is_written(tmp_path: Path) -> None:
    folder = RunFolder(Config(name="x", output=str(tmp_path)))
    folder.write_step(record("prepare"))
    folder.write_step(record("align", state=FAILED, error="a gate"))
    text = write_report(folder, LAUNCH, STEPS, "FAILED")
    assert text.startswith("# demo r-2: failed\n") and text.rstrip().endswith("align: a gate")
    assert "prepare: " not in text and (tmp_path / "x/pipeline/report.md").read_text() == text
