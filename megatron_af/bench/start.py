"""How long a run of the demo's size takes from its launcher to the first step, and from the last step to its end.

    result = measure(Path(folder), progress)        # tools/bench.py start

The model of ``configs/demo.yaml`` and its first stage with a frozen encoder, on a few made recordings, under the
launcher that a curriculum uses; the worker says when it passed what (``start_marks.py``). Wall-clock seconds are those
of this machine as it is; processor seconds are the first worker's own, which other programs' load changes less.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.table import Table

from megatron_af.config import Config, DatasetConfig
from megatron_af.config.loading import load_config, to_yaml
from megatron_af.data.rows import Clip, Question, Row, to_json
from megatron_af.files import write
from megatron_af.progress import Progress
from megatron_af.text import words

ROOT = Path(__file__).parents[2]
STEPS, RECORDINGS, SECONDS = 3, 32, 10.0
RUNS = 2
"""The second finds modules and libraries in the disk's cache, as a user's second run does; it is the one told."""


def measure(folder: Path, progress: Progress) -> dict[str, Any]:
    """
    Returns:
        ``to_first_step`` and ``from_last_step``: each ``parts``, a list of ``name``, ``wall`` and ``cpu`` (seconds of
        the first worker), and their sums ``wall`` and ``cpu``; ``processes``; ``load``, of the machine at the end.
    """
    file = made_run(folder)
    result: dict[str, Any] = {}
    for number in range(RUNS):
        result = _started(folder, file, number)
        progress.update("start", number + 1, RUNS)
    return result


def _started(folder: Path, file: Path, number: int) -> dict[str, Any]:
    config = load_config(file)
    marks = folder / "marks.json"
    worker = ["-m", "megatron_af.bench.start_marks", str(marks), "--config", str(file), f"name=start{number}"]
    processes = config.launch.processes_per_node
    command = [sys.executable, "-m", "megatron_af.pipeline.torchrun", "--standalone", f"--nproc_per_node={processes}"]
    began = time.monotonic()
    done = subprocess.run([*command, *worker], cwd=ROOT, capture_output=True, text=True, check=False)
    ended = time.monotonic()
    if done.returncode:
        raise RuntimeError(f"the run that is to be measured ended with {done.returncode}: {done.stderr[-2000:]}")
    told = json.loads(marks.read_text())
    return split(told["marks"], began, ended, told["launcher_seconds"]) | {
        "processes": processes, "load": os.getloadavg()[0]
    }  # fmt: skip


def split(
    marks: list[tuple[str, float, float]], began: float, ended: float, launcher_seconds: float
) -> dict[str, Any]:
    """The parts before the end of the first step, and those after the end of the last.

    Args:
        marks: what ended when, by the machine's clock and in processor time.
        began: when the launcher was started, ``ended`` when it was gone.
    """
    steps = [place for place, (name, _, _) in enumerate(marks) if name == "step"]
    first = [("launcher", began, -launcher_seconds), *marks[: steps[0] + 1]]
    last = [*marks[steps[-1] :], ("exit", ended, marks[-1][2])]
    return {
        name: {
            "parts": (parts := [
                {"name": after[0], "wall": after[1] - before[1], "cpu": after[2] - before[2]}
                for before, after in pairwise(chosen)
            ]),
            "wall": sum(part["wall"] for part in parts),
            "cpu": sum(part["cpu"] for part in parts),
        }
        for name, chosen in (("to_first_step", first), ("from_last_step", last))
    }  # fmt: skip


def tables(result: dict[str, Any]) -> list[Table]:
    """The result for the terminal."""
    titles = {"to_first_step": "from the launcher to the first step", "from_last_step": "from the last step to the end"}
    found = []
    for name, title in titles.items():
        table = Table("part", "wall, s", "processor, s", title=title)
        for part in result[name]["parts"]:
            table.add_row(part["name"], f"{part['wall']:.2f}", f"{part['cpu']:.2f}")
        table.add_row("all", f"{result[name]['wall']:.2f}", f"{result[name]['cpu']:.2f}")
        table.caption = f"{result['processes']} processes; load of the machine {result['load']:.1f}"
        found.append(table)
    return found


def made_run(folder: Path) -> Path:
    """Recordings, rows, a tokenizer, and a configuration of the demo's model that begins from fresh weights."""
    demo = load_config(ROOT / "configs/demo.yaml")
    rate, noise = demo.model.front_end.sample_rate, np.random.default_rng(0)
    rows = []
    for number in range(RECORDINGS):
        wave = 0.1 * noise.standard_normal(round(rate * SECONDS))
        soundfile.write(folder / f"{number}.wav", wave.astype(np.float32), rate)
        question = Question(prompt="what is heard first ?", output=f"sound {number % 8}")
        rows.append(Row(id=str(number), clips=(Clip(path=f"{number}.wav", duration=SECONDS),), questions=(question,)))
    write(folder / "made.jsonl", "".join(to_json(row) + "\n" for row in rows))
    words.build(f"{q.prompt} {q.output}" for row in rows for q in row.questions).save(str(folder / "tokenizer.json"))
    write(folder / "run.yaml", to_yaml(_of(demo, folder)))
    return folder / "run.yaml"


def _of(demo: Config, folder: Path) -> Config:
    stage = replace(demo.curriculum["align"], entry={}, blend={"made": 1.0}, steps=STEPS)
    data = replace(
        demo.data,
        root=str(folder),
        tokenizer=str(folder / "tokenizer.json"),
        feature_cache="",
        datasets={"made": DatasetConfig(manifest="made.jsonl")},
    )
    return replace(
        demo, output=str(folder / "runs"), data=data, curriculum={"align": stage}, stage="align",
        retrieval=type(demo.retrieval)(),
    )  # fmt: skip
