"""What a curriculum leaves in MLflow, seen in MLflow's own pages by a real browser."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_af.config import Config, DataConfig, DatasetConfig, RegistryConfig, StageConfig, TrackingConfig
from megatron_af.inference.looks import Look, draw
from megatron_af.pipeline.stages import measure_stage
from megatron_af.release import commands
from megatron_af.runs.identity import stage_inputs
from megatron_af.runs.paths import LATEST, MANIFEST
from megatron_af.runs.pointers import checkpoint_digest
from megatron_af.runs.records import StageRecord
from megatron_af.runs.results import bind_results
from megatron_af.tracking import runs
from megatron_af.tracking.delivery import send_waiting
from megatron_af.tracking.runs import start_curriculum_run, start_stage_run
from megatron_af.tracking.store import open_client
from tests.browser import EXECUTABLE, Browser
from tests.mlflow_store import store, store_template

__all__ = ["store", "store_template"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not EXECUTABLE, reason="no Chromium to look at MLflow with (Debian: apt install chromium)"),
    pytest.mark.timeout(600),
]
QUIET = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""
"""Keeps MLflow's assistant closed, which else covers a third of the page."""


def tracked(uri: str, folder: Path) -> Config:
    """A curriculum of two stages that was trained, measured, registered and promoted."""
    gates = "gates: {hears: {metric: test/overall/audio, min: 50}, answers: {answer_seconds: 9}}"
    (folder / "gates.yaml").write_text(gates)
    (folder / "test.jsonl").write_text("{}\n")
    config = Config(
        name="demo",
        output=str(folder / "runs"),
        data=DataConfig(root=str(folder), datasets={"test": DatasetConfig(manifest="test.jsonl")}),
        curriculum={"align": StageConfig(), "long": StageConfig(entry={"all": "align"}, evaluation=("test",))},
        tracking=TrackingConfig(uri=uri, system_metrics_seconds=0, alone=False),
        registry=RegistryConfig(gates=str(folder / "gates.yaml")),
    )
    curriculum = start_curriculum_run(config)
    runs = []
    for stage in config.curriculum:
        checkpoint = config.stage_folder(stage) / "checkpoints" / "step_00000040"
        checkpoint.mkdir(parents=True)
        (checkpoint / MANIFEST).write_text(json.dumps({"resume": {"step": 40}, "parts": {"lm": "."}}))
        (checkpoint.parent / LATEST).write_text(checkpoint.name)
        run = start_stage_run(replace(config, stage=stage), gpus="", world_size=1)
        for step in range(1, 41):
            gates = {f"gate_{kind}/{layer}": 0.01 * layer * step for kind in ("attn", "ffn") for layer in range(4)}
            run.spool.metrics(step, {"loss": 3 / step, "loss/scenes": 2 / step, **gates})
        run.end("FINISHED", "done")
        runs.append(run)
    digest = checkpoint_digest(config.stage_folder("long") / "checkpoints" / "step_00000040")
    StageRecord(inputs=stage_inputs(config, "long"), done=True, digest=digest).save(config.stage_folder("long"))
    measure_stage(config, "long", lambda *_: evaluate(config), curriculum.spool)
    curriculum.end("FINISHED", "done")
    send_waiting(folder / "runs")
    assert all(run.wait(60) for run in (curriculum, *runs))
    commands.register(config)
    commands.promote(config, why="hears better")
    return config


def evaluate(config: Config) -> None:
    """What tools/evaluate.py writes."""
    folder = config.stage_folder("long")
    scores = {"skills": {"what": {"audio": 60.0, "n": 4}}, "overall": {"audio": 60.0, "n": 4}}
    (folder / "result.json").write_text(json.dumps({"step": 40}))
    (folder / "hearing.json").write_text(json.dumps({"test": scores}))
    bind_results(replace(config, stage="long"), [folder / "hearing.json"])
    weights_TL, seconds_L = np.full((2, 8), 1 / 8), np.arange(8) * 1.25
    look = Look(prompt="what?", tokens=("a", "dog"), weights_TL=weights_TL, token_seconds_L=seconds_L, seconds=10.0)
    draw([look], folder / "pictures", "attention-test")


@contextmanager
def pages(uri: str) -> Iterator[str]:
    """MLflow's pages about a store; their address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["server", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command], env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "MLflow does not start"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/?workflowType=machine_learning#"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def test_runs_charts_pictures_and_the_champion_are_there_to_see(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "try_loading", lambda uri, source: (0.1, ""))
    monkeypatch.setattr(runs, "SENDER", "this")  # ends at once; all is sent from this process
    config = tracked(store, tmp_path)
    client = open_client(store)
    experiment = client.get_experiment_by_name("demo").experiment_id
    (run,) = client.search_runs([experiment], "attributes.run_name = 'long'")
    with pages(store) as address, Browser(tmp_path / "profile") as browser:
        browser.on_every_page(QUIET)
        here = f"{address}/experiments/{experiment}/runs"

        browser.open(here)
        rows = "[...document.querySelectorAll('[role=row] [role=gridcell] a[href*=\"/runs/\"]')].map(a => a.innerText)"
        assert browser.wait_for(f"{rows}.length && {rows}") == ["demo"], "the stages lie below the curriculum's run"
        browser.evaluate("document.querySelector('[data-component-id*=runnamecellrenderer]').click()")
        assert set(browser.wait_for(f"{rows}.length == 3 && {rows}")) == {"demo", "align", "long"}

        browser.open(f"{here}/{run.info.run_id}/model-metrics")
        points = "[...document.querySelectorAll('.js-plotly-plot')].map(p => p.data[0].x.length)"
        assert 40 in browser.wait_for(f"{points}.includes(40) && {points}")

        for name in ("loss", "gates", "attention-test-1"):
            browser.open(f"{here}/{run.info.run_id}/artifacts/pictures/{name}.png")
            browser.wait_for("[...document.images].some(i => i.naturalWidth > 300)")
        browser.open(f"{here}/{run.info.run_id}/artifacts/evaluation/test.json")
        browser.wait_for("document.body.innerText.includes('skill')")

        browser.open(f"{address}/models/{config.name}")
        text = browser.wait_for("document.body.innerText.includes('champion') && document.body.innerText")
        assert "Version 1" in text and "@\xa0champion" in text

