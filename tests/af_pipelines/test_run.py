"""Pipelines on this machine, from the command line to the last step, with tools in small."""

import json
import signal
import time

import psutil
import pytest

from tests.af_pipelines.conftest import Checkout

pytestmark = pytest.mark.slow

STAGES = [f"{tool} stage={stage}" for tool, stage in (("pretrain_af", "clap"), ("pretrain_af", "align"),
          ("evaluate", "align")) for node in range(2)]  # fmt: skip
ALL = ["prepare_data prepare", *STAGES, "promote register", "promote gate", "promote promote"]


NOTE_PID_AND_HANG = """
import os
(here / f"pid-{os.getpid()}").touch()
time.sleep(600)
"""


def wait_for_pids(checkout: Checkout, count: int) -> list[int]:
    """Process ids of tools that hang."""
    while len(list(checkout.root.glob("pid-*"))) < count:  # pytest's own limit ends it
        time.sleep(0.05)
    return [int(path.name.removeprefix("pid-")) for path in checkout.root.glob("pid-*")]


def states(checkout: Checkout) -> dict[str, str]:
    return {path.stem: json.loads(path.read_text())["state"] for path in (checkout.folder / "steps").glob("*.json")}


def test_everything_runs_once(checkout: Checkout) -> None:
    code, output = checkout.run("run")
    assert code == 0, output
    assert checkout.calls() == ALL
    assert "[align 1] step 2/2 | loss 0.25 | eta 0:00" in output
    report = (checkout.folder / "report.md").read_text()
    assert report.startswith("# curriculum ")
    for name in ("prepare", "clap", "align", "evaluate-align", "register", "gate", "promote"):
        assert f"| {name}" in report

    code, output = checkout.run("status")
    assert code == 0
    assert "ended here" in output
    assert output.count("done") == 7
    assert "step 2/2, loss 0.25, eta 0:00" in output
    code, output = checkout.run("logs", "--step", "align")
    assert "[align 1] step 2/2 | loss 0.25 | eta 0:00" in output
    assert "[clap" not in output
    code, output = checkout.run("cancel")
    assert (code, "has ended already" in output) == (0, True)

    code, output = checkout.run("run")
    assert code == 0
    assert checkout.calls() == ALL, "nothing to do"
    assert output.count("done before") == 4
    assert "[align] skip: done: step_00000002" in output

    code, output = checkout.run("run", "--pipeline", "promote")
    assert code == 0
    assert checkout.calls() == [*ALL, *ALL[-3:]], "asked for by name, they are done again"


def test_a_failing_gate_stops_the_promotion_and_resume_goes_on(checkout: Checkout) -> None:
    checkout.behave("gate", "sys.exit('gate accuracy: 0.41 is below 0.50')")
    code, output = checkout.run("run", "cluster.max_restarts=0")
    assert code == 1
    assert checkout.calls() == ALL[:-1], "promote never ran"
    assert "[gate] failed: gate: exit code 1, after 0 restarts: gate accuracy: 0.41 is below 0.50" in output
    assert "gate: gate: exit code 1" in (checkout.folder / "report.md").read_text()
    assert "failed" in (checkout.folder / "report.md").read_text().splitlines()[0]

    checkout.behave("gate", "")
    code, output = checkout.run("resume")
    assert code == 0, output
    assert checkout.calls() == [*ALL[:-1], "promote gate", "promote promote"]
    assert json.loads((checkout.folder / "run.json").read_text())["launch"]["attempt"] == 2


def test_a_step_that_gave_up_is_not_tried_again_by_the_pipeline(checkout: Checkout) -> None:
    checkout.behave("clap", "print('ValueError: no such data set'); sys.exit(2)")
    code, output = checkout.run("run", "cluster.retries=1", "cluster.max_restarts=3")
    assert code == 2
    assert [call for call in checkout.calls() if "clap" in call] == STAGES[:2], "one try, on each node"
    assert "which no restart mends: ValueError: no such data set" in output
    assert states(checkout) == {"prepare": "done", "clap": "failed"}


def test_a_crashed_stage_is_restarted(checkout: Checkout) -> None:
    checkout.behave("align", "marker = here / 'crashed'\nif not marker.exists(): marker.touch(); sys.exit(1)")
    code, output = checkout.run("run")
    assert code == 0, output
    assert "[align] restart 1 of 2" in output
    assert json.loads((checkout.folder / "steps/align.json").read_text())["restarts"] == 1


def test_cancel_stops_everything_and_says_so(checkout: Checkout) -> None:
    slow = "import os, signal\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(8), os._exit(3)))\n"
    checkout.behave("align", slow + NOTE_PID_AND_HANG)
    running = checkout.start("run")
    pids = wait_for_pids(checkout, 2)
    following = checkout.start("logs", "--follow")
    _, output = checkout.run("status")
    assert "running here" in output
    code, output = checkout.run("run")
    assert (code, "is still running as process" in output) == (1, True)
    code, output = checkout.run("cancel")
    assert (code, "is cancelled" in output) == (0, True)
    assert not [pid for pid in pids if psutil.pid_exists(pid)], "not before everything has ended"
    output, _ = running.communicate()
    assert running.returncode == 143
    output, _ = following.communicate()
    assert following.returncode == 0, "it ends with the run"
    assert "[clap] done in" in output and "[align] cancelled: " in output
    assert states(checkout) == {"prepare": "done", "clap": "done", "align": "cancelled"}
    assert "cancelled" in (checkout.folder / "report.md").read_text().splitlines()[0]


def test_nothing_outlives_a_killed_pipeline(checkout: Checkout) -> None:
    checkout.behave("clap", NOTE_PID_AND_HANG)
    running = checkout.start("run")
    workers = [psutil.Process(pid) for pid in wait_for_pids(checkout, 2)]
    running.send_signal(signal.SIGKILL)
    running.communicate()
    psutil.wait_procs(workers)
    checkout.behave("clap", "")
    code, output = checkout.run("resume")
    assert code == 0, output


def test_bad_input_is_named(checkout: Checkout) -> None:
    code, output = checkout.run("run", "parallel.tensor=3")
    assert code == 2
    assert "stage align on 2 nodes x 2 processes: " in output
    code, output = checkout.run("run", "cluster.stages.cpu=lots")
    assert (code, "stages.cpu is 'lots': write a Kubernetes quantity" in output) == (2, True)
    code, output = checkout.run("run", "curiculum.clap.steps=3")
    assert (code, "did you mean curriculum" in output) == (2, True)
    code, output = checkout.run("status")
    assert (code, "was never run or submitted from here" in output) == (1, True)
    assert checkout.calls() == []


def test_exit_gate_stops_the_curriculum(checkout: Checkout) -> None:
    code, output = checkout.run("run", "curriculum.align.exit_gate={loss: {max: 0.1}}")
    assert code == 4
    assert "[evaluate-align] failed: evaluate-align: stage align is trained but does not pass its exit gate" in output
    assert checkout.calls() == ALL[:-3]
