"""The sender process: beside the job while it lives, behind it when it dies, never in its way."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import Config, DataConfig, StageConfig, TrackingConfig
from megatron_af.entry import AGAIN
from megatron_af.tracking.runs import curriculum_spool, start_curriculum_run, start_stage_run
from megatron_af.tracking.store import open_client
from tests.tracking.mlflow_server import MlflowServer

JOB = """
import os, sys, time
from megatron_af.config import Config, StageConfig, TrackingConfig
from megatron_af.tracking.runs import start_stage_run
output, uri = sys.argv[1:]
config = Config(name="demo", output=output, stage="align", curriculum={"align": StageConfig()},
                tracking=TrackingConfig(uri=uri, linger_seconds=20, system_metrics_seconds=0.5))
run = start_stage_run(config, gpus="", world_size=1)
for step in range(1, 4):
    run.spool.metrics(step, {"loss": 1 / step})
print("ready", flush=True)
time.sleep(60)
"""


def config(tmp_path: Path, server: MlflowServer, **tracking: float) -> Config:
    return Config(
        name="demo",
        output=str(tmp_path / "runs"),
        stage="align",
        curriculum={"align": StageConfig(), "tune": StageConfig()},
        data=DataConfig(root=str(tmp_path)),
        tracking=TrackingConfig(uri=f"http://127.0.0.1:{server.port}", system_metrics_seconds=0, **tracking),  # type: ignore[arg-type]
    )


def wait_for(what: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def named(server: MlflowServer, name: str) -> dict[str, object]:
    return next((run for run in server.runs.values() if run["info"]["run_name"] == name), {"info": {}})


@pytest.mark.slow
def test_metrics_arrive_while_the_job_runs_and_a_killed_job_is_marked(tmp_path: Path, server: MlflowServer) -> None:
    arguments = [sys.executable, "-c", JOB, str(tmp_path / "runs"), f"http://127.0.0.1:{server.port}"]
    env = {**os.environ, "PYTHONPATH": "."}
    job = subprocess.Popen(arguments, stdout=subprocess.PIPE, start_new_session=True, env=env)
    try:
        assert job.stdout is not None and job.stdout.readline() == b"ready\n"
        wait_for(lambda: named(server, "align").get("metrics"))
        assert named(server, "align")["info"]["status"] == "RUNNING"  # type: ignore[index]
    finally:
        os.killpg(job.pid, signal.SIGKILL)  # what an out-of-memory killer or a node's end does
        job.wait()
    wait_for(lambda: named(server, "align")["info"]["status"] == "FAILED")  # type: ignore[index]
    run = named(server, "align")
    assert run["tags"]["ended"] == "died without a word after step 3"  # type: ignore[index]
    keys = {metric["key"] for metric in run["metrics"]}  # type: ignore[index,attr-defined]
    assert {"loss", "system/cpu_utilization_percentage", "system/system_memory_usage_percentage"} <= keys
    # a stage on its own ends the parent run, after its own
    wait_for(lambda: named(server, "demo")["info"]["status"] == "FAILED")  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["refuse", "broken", "slow"])
def test_training_does_not_feel_a_bad_server(tmp_path: Path, server: MlflowServer, trouble: str) -> None:
    server.trouble = trouble
    started = time.perf_counter()
    run = start_stage_run(config(tmp_path, server, linger_seconds=5), gpus="", world_size=1)
    assert time.perf_counter() - started < 15, "starting is a fork and some digests"
    started = time.perf_counter()
    for step in range(1, 301):
        run.spool.metrics(step, {"loss": 1 / step})
        time.sleep(0.002)
    run.end("FINISHED", "done")
    assert time.perf_counter() - started < 15
    server.trouble = ""
    assert run.wait(30)
    run_id = named(server, "align")["info"]["run_id"]  # type: ignore[index]
    assert server.history(run_id, "loss") == list(range(1, 301))


@pytest.mark.slow
def test_a_server_that_stays_away_keeps_nobody(tmp_path: Path, server: MlflowServer) -> None:
    server.stop()
    run = start_stage_run(config(tmp_path, server, linger_seconds=1), gpus="", world_size=1)
    run.spool.metrics(1, {"loss": 1.0})
    run.end("FINISHED", "done")
    assert run.wait(30)
    assert "python -m megatron_af.tracking" in (run.spool.folder / "sender.log").read_text()
    by_hand = [sys.executable, "-m", "megatron_af.tracking", str(tmp_path / "runs/demo")]
    done = subprocess.run(by_hand, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (AGAIN, "0 runs are up to date\n")
    assert f"{run.spool.folder} still waits: http://127.0.0.1:{server.port} does not answer" in done.stderr
    server.start()
    done = subprocess.run(by_hand, capture_output=True, text=True, timeout=60)
    assert done.stdout == "2 runs are up to date\n", done.stderr
    assert named(server, "align")["info"]["status"] == "FINISHED"  # type: ignore[index]


@pytest.mark.slow
def test_a_restarted_job_goes_on_in_its_run_and_other_inputs_are_another(tmp_path: Path, server: MlflowServer) -> None:
    base = config(tmp_path, server)
    stage = base.curriculum["align"]
    changed = replace(base, curriculum={"align": replace(stage, max_windows=stage.max_windows + 1)})
    # Another layout, length and evaluation make no other run.
    moved = replace(
        base,
        parallel=replace(base.parallel, tensor=2),
        curriculum={"align": replace(stage, evaluation=("clotho",), steps=stage.steps + 1)},
    )
    for each in (base, moved, changed):
        run = start_stage_run(each, gpus="", world_size=1)
        run.spool.metrics(run.spool.last_step() + 1, {"loss": 1.0})
        run.end("FINISHED", "done")
        assert run.wait(30)
    names = [run["info"]["run_name"] for run in server.runs.values()]
    assert names == ["demo", "align", "align"]
    assert server.history("run1", "loss") == [0, 1]
    assert server.history("run2", "loss") == [0]


@pytest.mark.slow
def test_a_curriculum_holds_its_stages(tmp_path: Path, store: str) -> None:
    base = config(tmp_path, MlflowServer(tmp_path))
    base = replace(base, tracking=replace(base.tracking, uri=store, alone=False))
    parent = start_curriculum_run(base)
    child = start_stage_run(base, gpus="", world_size=1)
    child.end("FINISHED", "done")
    parent.end("FINISHED", "done")
    assert child.wait(60) and parent.wait(60)

    client = open_client(store)
    experiment = client.get_experiment_by_name("demo")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"demo", "align"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["align"].data.tags["mlflow.parentRunId"] == runs["demo"].info.run_id
    assert runs["align"].data.tags["digest.config"].startswith("sha256:")
    assert "torch 2." in runs["align"].data.tags["packages"]
    assert runs["align"].data.params["stage.max_windows"] == "3"
    assert runs["align"].data.params["model.lm.hidden"] == "2048"
    assert not (curriculum_spool(base) / "refused.jsonl").exists()
