"""The demo: prepare recordings and scenes, train the curriculum, ask the held-out questions, show table and report.

    summary = run_demo("configs/demo.yaml")

What is on disk and was made by the same settings is not made again, so a run that was stopped goes on where it was.
Stages are trained and measured by :func:`megatron_af.pipeline.curriculum.run_curriculum`; this module shows how far
they are.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from megatron_af.config import Config, ConfigError
from megatron_af.config.loading import load_config
from megatron_af.cores import share_cores
from megatron_af.demo.recordings import Recordings
from megatron_af.demo.scenes import prepare_scenes
from megatron_af.evaluate.hearing import table
from megatron_af.files import write
from megatron_af.foreign import read_json, read_text
from megatron_af.pipeline.curriculum import plan, run_curriculum
from megatron_af.pipeline.stage_progress import StageProgress
from megatron_af.progress import Progress
from megatron_af.report.run import REPORT, write_report
from megatron_af.runs.records import StageRecord


def run_demo(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run what is left of the demo; returns, and writes to ``output/name/summary.json``, its numbers.

    Raises:
        ConfigError: the configuration cannot be read or cannot run.
        StepFailed: a stage or its evaluation failed.
        Cancelled: this process was asked to stop.
    """
    config = load_config(path, overrides)
    plan(config)  # refuses what cannot run before anything is made
    console, folder = Console(), Path(config.output) / config.name
    folder.mkdir(parents=True, exist_ok=True)
    with Progress(console) as progress:
        recordings = prepare_demo(config, progress)
        progress.say(f"sounds: {recordings.source}")
        share_cores(config.launch.processes_per_node)
        run_curriculum(config, say=StageProgress(config, progress))
    sets = read_json(config.stage_folder(list(config.curriculum)[-1]) / "hearing.json")
    seconds = {"prepare": read_json(_marker(config))["seconds"]}
    for stage in config.curriculum:
        record = StageRecord.load(config.stage_folder(stage))
        seconds[stage] = record.seconds if record else 0.0
    seconds["training"] = sum(seconds[stage] for stage in config.curriculum)
    summary = {
        **next(iter(sets.values())),
        "sets": sets,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "sources": recordings.source,
    }
    told, file, report = json.dumps(summary, indent=1), folder / "summary.json", folder / REPORT
    if not (report.is_file() and file.is_file() and read_text(file) == told):
        write(file, told)
        write_report(folder)
    for name, scores in sets.items():
        console.print(table(scores, f"held-out scenes: {name}"))
    low, high = summary["overall"]["interval"]
    console.print(
        f"The right audio beats exchanged audio by [bold]{summary['overall']['gap']}[/bold] points "
        f"(95% interval {low} to {high}); training took {seconds['training'] / 60:.1f} minutes, preparation "
        f"{seconds['prepare']:.0f} s. {folder / 'summary.json'}"
    )
    console.print(f"To look at and to listen to: {report}", soft_wrap=True)
    return summary


def prepare_only(path: str, overrides: Sequence[str] = ()) -> None:
    """Only the recordings, scenes and tokenizer, where a pipeline does the rest."""
    config = load_config(path, overrides)
    with Progress() as progress:
        recordings = prepare_demo(config, progress)
    print(f"sounds: {recordings.source}")


def prepare_demo(config: Config, progress: Progress) -> Recordings:
    """Recordings, scenes and tokenizer, unless they were made by the same settings."""
    if not config.scenes.sets:
        raise ConfigError(f"{config.name} mixes no scenes", ["scenes.sets is empty: name at least one set of scenes"])
    root, marker = Path(config.data.root), _marker(config)
    wanted = json.loads(json.dumps({"seed": config.seed, **asdict(config.scenes)}))
    if not marker.exists() or read_json(marker).get("settings") != wanted:
        root.mkdir(parents=True, exist_ok=True)
        marker.unlink(missing_ok=True)  # from here on, what lies there is neither the old nor the new
        started = time.monotonic()
        prepare_scenes(config.scenes, config.seed, root, progress)
        write(marker, json.dumps({"settings": wanted, "seconds": time.monotonic() - started}))
    stored = read_json(root / "recordings" / "recordings.json")
    return Recordings(source=stored["source"], items=())


def _marker(config: Config) -> Path:
    return Path(config.data.root) / "prepared.json"
