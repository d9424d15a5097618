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
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_af.config import StageConfig, TrackingConfig
from megatron_af.config.loading import to_yaml
from megatron_af.runs.paths import latest, read_resume
from megatron_af.runs.whole import damage
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


def start(*command: str) -> "subprocess.Popen[str]":
    """A program of ours, in a session of its own as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kubeflow'}", "OMP_NUM_THREADS": "1"},
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


@contextlib.contextmanager
def training(
    program: list[str], run_file: Path, name: str, *more: str
) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """A program in the middle of training, behind a checkpoint and a step that is in none; and what it has printed."""
    output = run_file.parent / "runs"
    process = start(*program, "--config", str(run_file), f"name={name}", *more)
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
LAUNCHER = ["-m", "megatron_af.pipeline.torchrun", "--standalone", "--nproc_per_node=2", "tools/pretrain_af.py"]
ALONE = ["tools/pretrain_af.py"]
TERM, INT = signal.SIGTERM, signal.SIGINT


def to_it(process: "subprocess.Popen[str]", number: int) -> None:
    process.send_signal(number)


def again_and_again(process: "subprocess.Popen[str]", number: int) -> None:
    for _ in range(3):
        process.send_signal(number)
        time.sleep(0.2)


def to_all(process: "subprocess.Popen[str]", number: int) -> None:
    """As a terminal does."""
    os.killpg(process.pid, number)


def to_a_worker(process: "subprocess.Popen[str]", number: int) -> None:
    """The last one of those that the launcher started."""
    children = [child for child in psutil.process_iter() if child.ppid() == process.pid]
    max(children, key=lambda child: child.pid).send_signal(number)


STOPS: dict[str, tuple[list[str], signal.Signals, Callable[..., None], int, str]] = {
    "run_curriculum SIGTERM": (CURRICULUM, TERM, to_it, 143, "stopped by SIGTERM; the same command goes on"),
    "run_curriculum SIGINT": (CURRICULUM, INT, again_and_again, 130, "stopped by SIGINT; the same command goes on"),
    "af_pipelines SIGTERM": (PIPELINE, TERM, to_it, 143, "stopped by SIGTERM; `af-pipelines resume` goes on"),
    "launcher SIGINT": (LAUNCHER, INT, to_all, 130, "stopped by SIGINT; the same command goes on"),
    "launcher SIGTERM": (LAUNCHER, TERM, to_it, 143, "stopped by SIGTERM; the same command goes on"),
    "worker SIGTERM": (LAUNCHER, TERM, to_a_worker, 3, "stopped after step"),
    "one process SIGINT": (ALONE, INT, to_all, 3, "stopped after step"),
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_a_stopped_run_writes_its_checkpoint_and_ends_last(run_file: Path, stop: Any) -> None:
    """With the step under way, behind two checkpoints that were written asynchronously."""
    program, number, send, code, last_words = stop
    name = f"stop-{list(STOPS.values()).index(stop)}"
    more = ["checkpoint.asynchronous=true", *(["stage=align"] if "tools/pretrain_af.py" in program else [])]
    with training(program, run_file, name, *more) as (process, lines):
        assert len(workers(run_file, name)) >= (1 if program is ALONE else 3)
        send(process, number)
        rest, _ = process.communicate(timeout=240)
    output = "".join(lines) + rest
    assert process.returncode == code, output
    assert workers(run_file, name) == []
    before = output[: output.index("step 1/")].splitlines()
    assert [line for line in before if re.search(r"warn|deprecat|not installed|\b[WE]\d{4} ", line)] == []
    assert not re.search(r"Traceback|BrokenPipe|\b[WE]\d{4} ", rest), output
    assert last_words in output.splitlines()[-1]
    folder = run_file.parent / "runs" / name / "align" / "checkpoints"
    checkpoint = latest(folder)
    assert checkpoint is not None and not damage(checkpoint) and not list(folder.glob("*.partial"))
    last = [line for line in output.splitlines() if "step " in line and "/100000" in line][-1]
    assert f"step {read_resume(checkpoint)['step']}/" in last, "the step under way is in it"


@pytest.mark.parametrize("number", [TERM, INT])
def test_a_stopped_demo_writes_its_checkpoint(number: int, tmp_path: Path) -> None:
    folders = [f"output={tmp_path}/runs", f"data.root={tmp_path}/data"]
    process = start(*EARLY["demo"], *folders, "curriculum.lm.steps=100000")
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.match(r"stage lm [1-9]", line):
            break
    to_all(process, number) if number == INT else to_it(process, number)
    rest, _ = process.communicate(timeout=240)
    assert process.returncode == 128 + number, "".join(lines) + rest
    assert "Traceback" not in rest
    assert rest.splitlines()[-1].startswith(f"stopped by {signal.Signals(number).name}; the same command goes on"), rest
    (folder,) = (tmp_path / "runs").glob("*/lm/checkpoints")
    checkpoint = latest(folder)
    assert checkpoint is not None and not damage(checkpoint) and read_resume(checkpoint)["step"] > 0


EARLY = {
    "demo": ["tools/demo.py", "--config", "configs/demo_test.yaml"],
    "run_curriculum": ["tools/run_curriculum.py", "--config", "configs/demo_test.yaml"],
    "launcher": [*LAUNCHER, "--config", "configs/demo_test.yaml", "stage=align"],
    "one process": [*ALONE, "--config", "configs/demo_test.yaml", "stage=align"],
}


@pytest.mark.parametrize("program", EARLY.values(), ids=EARLY)
@pytest.mark.parametrize("number", [TERM, INT])
def test_what_is_stopped_before_it_began_says_one_line(program: list[str], number: int, tmp_path: Path) -> None:
    """Wherever it is by then: imports, reading, preparing data, meeting the others."""
    process = start(*program, f"output={tmp_path}/runs", f"data.root={tmp_path}/data")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # until its own handlers are there
        caught = Path(f"/proc/{process.pid}/status").read_text().partition("SigCgt:")[2].split()[0]
        if int(caught, 16) & 1 << (TERM - 1):
            break
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output, output
    assert output.splitlines()[-1] == f"stopped by {signal.Signals(number).name}; the same command goes on from there"


@pytest.mark.parametrize(
    "program",
    [
        CURRICULUM,
        LAUNCHER,
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
