"""A run that is asked to stop: its processes write their checkpoint, and it ends after them, with one line and a code.

Real training on two processes, started as a person does.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from megatron_af.config import StageConfig, TrackingConfig
from megatron_af.config.loading import to_yaml
from megatron_af.runs.paths import latest, read_resume
from tests import tiny
from tests.data.toy import toy_config

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage that trains for ever, on two processes."""
    folder = tmp_path_factory.mktemp("stopping")
    toy, small = toy_config(folder), tiny.config()
    model = replace(small.model, front_end=toy.model.front_end, lm=replace(small.model.lm, vocab=257))
    stage = StageConfig(
        trainable=("*",), blend={"a": 1.0}, global_batch_samples=2, micro_batch_samples=1, steps=100_000,
        max_windows=1, max_text_tokens=128,
    )
    config = replace(
        toy,
        model=model,
        curriculum={"align": stage},
        stage="",
        launch=replace(toy.launch, processes_per_node=2),
        tracking=TrackingConfig(enabled=False),
        checkpoint=replace(toy.checkpoint, every_steps=2),
        log_every_steps=1,
    )
    path = folder / "run.yaml"
    path.write_text(to_yaml(config))
    return path


@contextlib.contextmanager
def training(
    program: list[str], run_file: Path, name: str, *more: str
) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """A program in the middle of training, behind a checkpoint and a step that is in none; and what it has printed."""
    output = run_file.parent / "runs"
    process = subprocess.Popen(
        [sys.executable, *program, "--config", str(run_file), f"name={name}", *more],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kubeflow'}", "OMP_NUM_THREADS": "1"},
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "step 5/" in line:
                break
        assert process.poll() is None and output.exists(), "".join(lines)
        yield process, lines
    finally:
        for child in [*psutil.Process().children(recursive=True)]:
            child.kill()
        process.communicate()


def workers(run_file: Path, name: str) -> list[psutil.Process]:
    """Everything that lives for the sake of this run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if str(run_file.parent) in command and (f"/{name}/" in command or f"name={name}" in command):
                found.append(process)
    return found


CURRICULUM = ["tools/run_curriculum.py"]
PIPELINE = ["-m", "af_pipelines", "run", "--pipeline", "stages"]


@pytest.mark.parametrize(
    ("program", "number", "times"),
    [(CURRICULUM, signal.SIGTERM, 1), (CURRICULUM, signal.SIGINT, 3), (PIPELINE, signal.SIGTERM, 1)],
    ids=["run_curriculum SIGTERM", "run_curriculum SIGINT again and again", "af_pipelines SIGTERM"],
)
def test_a_stopped_run_writes_its_checkpoint_and_ends_last(
    run_file: Path, program: list[str], number: signal.Signals, times: int
) -> None:
    name = f"stop-{PIPELINE is program}-{number}"
    with training(program, run_file, name) as (process, lines):
        assert len(workers(run_file, name)) >= 4, "driver, launcher, two workers"
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.2)
        rest, _ = process.communicate(timeout=240)
    output = "".join(lines) + rest
    assert process.returncode == 128 + number, output
    assert workers(run_file, name) == []
    before = output[: output.index("step 1/")].splitlines()
    assert [line for line in before if re.search(r"warn|deprecat|not installed|\b[WE]\d{4} ", line)] == []
    assert "Traceback" not in output and "BrokenPipe" not in output, output
    assert f"stopped by {number.name}" in output.splitlines()[-1]
    checkpoint = latest(run_file.parent / "runs" / name / "align" / "checkpoints")
    assert checkpoint is not None
    last = [line for line in output.splitlines() if "step " in line and "/100000" in line][-1]
    assert f"step {read_resume(checkpoint)['step']}/" in last, "the step under way is in it"


@pytest.mark.parametrize(
    "program",
    [
        CURRICULUM,
        ["-m", "megatron_af.pipeline.torchrun", "--standalone", "--nproc_per_node=2", "tools/pretrain_af.py"],
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "tools/pretrain_af.py"],
    ],
    ids=["run_curriculum", "our torchrun", "torchrun"],
)
def test_nothing_outlives_a_killed_launcher(run_file: Path, program: list[str]) -> None:
    name = "kill-" + program[1 if len(program) > 1 else 0].replace("/", "-")
    more = [] if program is CURRICULUM else ["stage=align"]
    with training(program, run_file, name, *more) as (process, _):
        left = [worker for worker in workers(run_file, name) if worker.pid != process.pid]
        assert len(left) >= 2
        process.kill()
        _, alive = psutil.wait_procs(left, timeout=15)
        assert alive == []
