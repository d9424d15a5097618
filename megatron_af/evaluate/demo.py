"""The demo as a list of steps: prepare recordings and scenes, train every stage, ask the held-out questions.

    summary = run_demo("configs/demo.yaml")

Each step leaves its result on disk and is skipped when it is there, so a run that was stopped goes on where it was.
Training and evaluation run as their own commands under torchrun; this module only watches them.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from megatron_af.config import Config
from megatron_af.config_file import load_config, to_yaml
from megatron_af.data.recordings import Recordings
from megatron_af.data.scenes import prepare_scenes
from megatron_af.evaluate.hearing import table
from megatron_af.train.layout import latest, read_resume

TOOLS = Path(__file__).parents[2] / "tools"
STEP = re.compile(r"^step (\d+)/(\d+) .*?\| loss (\S+)")


class StepFailed(RuntimeError):
    """A command of the demo ended with an error; the message holds the end of its output."""


def run_demo(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run what is left of the demo; returns, and writes to ``output/name/summary.json``, its numbers.

    Raises:
        ConfigError: the configuration cannot be read.
        StepFailed: a stage or the evaluation failed.
    """
    config = load_config(path, overrides)
    console, folder = Console(), Path(config.output) / config.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    seconds = _Seconds(folder / "seconds.json")
    with _progress(console) as progress:
        recordings = _prepare(config, progress, seconds)
        progress.console.print(f"sounds: {recordings.source}")
        for stage in config.curriculum:
            _train(config, stage, progress, seconds)
        last = list(config.curriculum)[-1]
        hearing = config.stage_folder(last) / "hearing.json"
        if not hearing.exists():
            task = progress.add_task("evaluation", total=None)
            with seconds.of("evaluate"):
                _run(_command(config, "evaluate_hearing.py", last), config.stage_folder(last) / "evaluation.txt")
            progress.update(task, total=1, completed=1)
    sets = json.loads(hearing.read_text())
    training = sum(seconds.spent.get(stage, 0.0) for stage in config.curriculum)
    main = next(iter(sets))
    summary = {
        **sets[main],
        "sets": sets,
        "seconds": {k: round(v, 1) for k, v in {**seconds.spent, "training": training}.items()},
        "sources": recordings.source,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    for name, scores in sets.items():
        console.print(table(scores, f"held-out scenes: {name}"))
    low, high = summary["overall"]["interval"]
    console.print(
        f"The right audio beats exchanged audio by [bold]{summary['overall']['gap']}[/bold] points "
        f"(95% interval {low} to {high}); training took {training / 60:.1f} minutes, preparation "
        f"{seconds.spent.get('prepare', 0.0):.0f} s. {folder / 'summary.json'}"
    )
    return summary


def prepare_demo(path: str, overrides: Sequence[str] = ()) -> None:
    """Only the recordings, scenes and tokenizer, where a pipeline does the rest."""
    config = load_config(path, overrides)
    folder = Path(config.output) / config.name
    folder.mkdir(parents=True, exist_ok=True)
    with _progress(Console()) as progress:
        recordings = _prepare(config, progress, _Seconds(folder / "seconds.json"))
    print(f"sounds: {recordings.source}")


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description:<22}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%")
    return Progress(*columns, TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(), console=console)


class _Seconds:
    """Wall time by step, kept on disk so that a resumed run reports all of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.spent: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def of(self, step: str) -> "_Seconds":
        self._step = step
        return self

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.spent[self._step] = self.spent.get(self._step, 0.0) + time.monotonic() - self._started
        self._path.write_text(json.dumps(self.spent))


def _prepare(config: Config, progress: Progress, seconds: _Seconds) -> Recordings:
    """Recordings, scenes and tokenizer, unless they were made by the same settings."""
    root = Path(config.data.root)
    marker, wanted = root / "prepared.json", {"seed": config.seed, **asdict(config.scenes)}
    if not marker.exists() or json.loads(marker.read_text()) != json.loads(json.dumps(wanted)):
        root.mkdir(parents=True, exist_ok=True)
        with seconds.of("prepare"):
            prepare_scenes(config.scenes, config.seed, root, progress)
        marker.write_text(json.dumps(wanted))
    stored = json.loads((root / "recordings" / "recordings.json").read_text())
    return Recordings(source=stored["source"], items=())


def _train(config: Config, stage: str, progress: Progress, seconds: _Seconds) -> None:
    steps = config.curriculum[stage].steps
    checkpoint = latest(config.stage_folder(stage) / "checkpoints")
    done = read_resume(checkpoint)["step"] if checkpoint else 0
    task = progress.add_task(f"stage {stage}", total=steps, completed=done)
    if done >= steps:
        return

    def watch(line: str) -> None:
        if match := STEP.match(line):
            progress.update(task, completed=int(match[1]), description=f"stage {stage} (loss {match[3]})")

    log = config.stage_folder(stage) / "log.txt"
    with seconds.of(stage):
        _run(_command(config, "pretrain_af.py", stage), log, watch)


def _command(config: Config, tool: str, stage: str) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={config.launch.processes_per_node}"]
    resolved = Path(config.output) / config.name / "config.yaml"
    return [sys.executable, *launch, str(TOOLS / tool), "--config", str(resolved), f"stage={stage}"]


def _run(command: Sequence[str], log: Path, watch: Any = None) -> None:
    """Run a command, show each line to ``watch`` and keep all of them in ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // 2)
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(TOOLS.parent),
        "PYTHONUNBUFFERED": "1",
    }
    with (
        log.open("a") as file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as process,
    ):
        assert process.stdout is not None
        tail: list[str] = []
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                tail = [*tail, line][-40:]
                if watch:
                    watch(line)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise StepFailed(f"{' '.join(command)} ended with {process.returncode}; the end of {log}:\n{''.join(tail)}")
