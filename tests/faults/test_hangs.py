"""A real run of two processes, one of which hangs: all ends, with every stack on disk and a code for another try."""

import signal
import time
from pathlib import Path

import pytest

from megatron_af.entry import AGAIN
from megatron_af.runs.paths import latest
from megatron_af.runs.whole import damage
from tests.faults.kills import Life, living, prepare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("hangs"))


@pytest.mark.parametrize(
    ("where", "stuck"),
    [("python", "waits_for_ever"), ("collective", "barrier"), ("data", "waits_for_ever"), ("stopped", "")],
)
def test_a_run_that_hangs_ends_for_another_try(
    where: str, stuck: str, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANGS", where)
    life = Life(run_file, where, more=("launch.hang_seconds=5",), cold=True)
    for _ in life.steps():
        began, family = time.monotonic(), life.family()
    seconds = time.monotonic() - began
    said = "".join(life.lines)
    killed = 128 + signal.SIGKILL if where == "stopped" else AGAIN  # by the launcher, for it heeds nothing else
    assert life.process.wait() == killed, said
    assert not living(family, 5.0)
    assert seconds < 60, "found within 5 s, 10 s for the others to write"
    folder = run_file.parent / "runs" / where / "align"
    first, last = ((folder / "hang" / f"rank_{rank}.txt").read_text() for rank in range(2))
    assert "behind step" in first, "it waits for the other"
    assert stuck in last and (where != "stopped" or not last), "one that is stopped writes nothing"
    assert said.count("nothing has moved for 5 s behind step") == 1 and "Traceback" not in said
    newest = latest(folder / "checkpoints")
    assert newest is not None and not damage(newest)
