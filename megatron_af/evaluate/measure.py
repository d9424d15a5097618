"""A stage's answers: every question of its evaluation sets asked, the tables printed, the results written.

    measure(config, few_shot_sets(config, "clotho", sets, [0, 4]), "clotho")     # a collective of the whole world

Results of no examples are the stage's own (``megatron_af/runs/results.py``); those of K stand beside them in
``few_shot/K_from_DATASET``, in the same files.

    measure_elsewhere(config, sets, checkpoint, Path("tried/dogs"))

asks about any rows, of any checkpoint of the stage, and writes the same files into a folder for each data set. What
lies there of the same weights, rows and settings is not asked again, so a measurement that was stopped goes on.

    measure_contrastive(config, sets, checkpoint)

does all this for a stage of a CLAP.

Where ``curriculum.STAGE.calibrate`` names a data set, it is asked first, and ``calibration.json`` says how sure an
answer must be (``runs/calibration.py``).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from rich.console import Console

from megatron_af.config import Config
from megatron_af.data.rows import Row
from megatron_af.evaluate.clap import evaluate_clap
from megatron_af.evaluate.clap import table as clap_table
from megatron_af.evaluate.classes import by_class, class_tables
from megatron_af.evaluate.exchange import plain_answer
from megatron_af.evaluate.few_shot import Sets, cut_short, few_shot_table
from megatron_af.evaluate.hearing import (
    Asked,
    AskedLine,
    answer_lines,
    ask_all,
    evaluation_rows,
    questions_of,
    summarise,
    table,
)
from megatron_af.files import write
from megatron_af.inference.embedder import ClapEmbedder
from megatron_af.inference.listener import Listener
from megatron_af.inference.looks import draw, fixed_samples, write_looks
from megatron_af.progress import Progress, silent
from megatron_af.runs.calibration import KEPT, Calibration, calibrate
from megatron_af.runs.paths import resolve_entry
from megatron_af.runs.pointers import checkpoint_digest
from megatron_af.runs.results import are_of, bind_results, few_shot_folder

DRAWN = 4
"""Answers of each data set that are drawn."""


def measure(config: Config, plan: Mapping[int, Sets], source: str) -> None:
    """
    Args:
        plan: for each number of examples, what is asked of each set.
        source: where the examples are from.
    """
    folder, found = config.stage_folder(config.stage), dict[int, dict[str, Any]]()
    first = dist.get_rank() == 0
    questions = sum(len(questions_of(rows)) for shown in plan.values() for rows in shown.values())
    with Progress(Console(width=110)) if first else silent() as progress:
        line = AskedLine(progress, 2 * questions, dist.get_world_size())
        listener = Listener(config, watch=line)
        if config.curriculum[config.stage].calibrate and 0 in plan:
            listener.calibration = _calibrated(listener, resolve_entry(config, config.stage))
            if first:
                progress.say(_told(config, listener.calibration))
        for shots, shown in plan.items():
            found[shots], lines = {}, list[str]()
            for name, rows in shown.items():
                asked = _asked(listener, rows)
                found[shots][name] = summary = _summary(asked)
                lines += answer_lines(name, asked)
                if shots:
                    summary["overall"]["cut_short"] = cut_short(listener.prompt, rows)
                if first:
                    behind = f", {shots} shots" if shots else ""
                    _show(progress, config, summary, f"{name}{behind}")
                if first and not shots:
                    looks = listener.looks(fixed_samples(rows, DRAWN))
                    draw(looks, folder / "pictures", f"attention-{name}")
                    write_looks(looks, folder / "pictures" / f"attention-{name}.json")
            if first:
                at = folder / few_shot_folder(shots, source) if shots else folder
                write(at / "hearing.json", json.dumps(found[shots], indent=1))
                write(at / "answers.jsonl", "\n".join(lines) + "\n")
        line.end()
        if first and any(plan):
            progress.console.print(few_shot_table(found, source))
    if first and 0 in found:
        files = [folder / "hearing.json", folder / "answers.jsonl"]
        bind_results(config, [*files, *(listener.calibration.write(folder) if listener.calibration else [])])
    listener.close()


def measure_elsewhere(config: Config, sets: Sets, checkpoint: Path, output: Path) -> None:
    """A collective of the whole world.

    Args:
        checkpoint: of ``config.stage``'s model.
        output: gets a folder for each data set.
    """
    first = dist.get_rank() == 0
    asking = [_to_ask(config, sets, checkpoint, output) if first else []]
    dist.broadcast_object_list(asking)
    with Progress(Console(width=110)) if first else silent() as progress:
        for name in sets:
            if name not in asking[0]:
                progress.say(f"{name}: measured already, in {output / name}")
        if not asking[0]:
            return
        questions = sum(len(questions_of(sets[name])) for name in asking[0])
        line = AskedLine(progress, 2 * questions, dist.get_world_size())
        listener = Listener(config, checkpoint, watch=line)
        for name in asking[0]:
            asked = _asked(listener, sets[name])
            if first:
                summary, folder = _summary(asked), output / name
                _show(progress, config, summary, name)
                write(folder / "hearing.json", json.dumps({name: summary}, indent=1))
                write(folder / "answers.jsonl", "\n".join(answer_lines(name, asked)) + "\n")
                files = [folder / "hearing.json", folder / "answers.jsonl"]
                bind_results(_asking(config, name), files, checkpoint)
        line.end()
        listener.close()


def measure_contrastive(config: Config, sets: Sets, checkpoint: Path, output: Path | None = None) -> None:
    """What a contrastive stage can do with each set; a collective of the whole world.

    Args:
        checkpoint: of ``config.stage``'s model.
        output: gets a folder for each data set; None: the results are the stage's own.
    """
    first = dist.get_rank() == 0
    asking = [list(sets) if output is None else _to_ask(config, sets, checkpoint, output) if first else []]
    dist.broadcast_object_list(asking)
    embedder = ClapEmbedder(config, checkpoint)
    for name in asking[0]:
        report = evaluate_clap(embedder, sets[name])
        if not first:
            continue
        Console(width=110).print(clap_table(report, f"{config.name}, stage {config.stage}, {name}"))
        file = (output / name if output else config.stage_folder(config.stage)) / f"clap-{name}.json"
        write(file, json.dumps(report, indent=1))
        bind_results(_asking(config, name) if output else config, [file], checkpoint)
    embedder.close()


def _to_ask(config: Config, sets: Sets, checkpoint: Path, output: Path) -> list[str]:
    weights = checkpoint_digest(checkpoint)
    return [name for name in sets if not are_of(_asking(config, name), config.stage, weights, output / name)]


def _asking(config: Config, name: str) -> Config:
    """The configuration with one data set to measure its stage on."""
    stage = replace(config.curriculum[config.stage], evaluation=(name,))
    return replace(config, curriculum={**config.curriculum, config.stage: stage})


def _calibrated(listener: Listener, checkpoint: Path) -> Calibration | None:
    """How sure the answers to the development questions with options are, the right and the wrong ones, and how the
    recordings sound that they are about; a collective."""
    dataset = listener.stage.calibrate
    asked = [row for row in questions_of(evaluation_rows(listener.config, dataset)) if row.questions[-1].options]
    told = [(row.questions[-1].output, said) for row, said in zip(asked, listener.told(asked), strict=True) if said]
    right = [plain_answer(said.text) == plain_answer(wanted) for wanted, said in told]
    recordings = {row.clips[-1]: row for row in asked}
    vectors_ND = np.stack([listener.vector(row) for row in recordings.values()]) if recordings else np.zeros((0, 1))
    confidences = [said.confidence for _, said in told]
    return calibrate(dataset, checkpoint_digest(checkpoint), confidences, right, vectors_ND.astype(np.float32))


def _asked(listener: Listener, rows: Sequence[Row]) -> list[Asked]:
    """Every question, and where the stage is calibrated also what it is not sure of."""
    unsure = replace(listener.decoding, unsure="none of these" if listener.calibration else "")
    return ask_all(partial(listener.told, decoding=unsure), rows, calibrated=listener.calibration is not None)


def _told(config: Config, calibration: Calibration | None) -> str:
    key = f"curriculum.{config.stage}.calibrate"
    if calibration is None:
        return f"{key}: no question with options is answered right there, so nothing says how sure to be"
    return (
        f"{key}: {calibration.right:.1f}% of {calibration.n:,} questions of {calibration.dataset} are answered right; "
        f"to keep {KEPT:.0%} of these an answer needs a confidence of {calibration.least_confidence:.3f} and its "
        f"recording a likeness of {calibration.least_likeness:.3f} to one of theirs"
    )


def _summary(asked: Sequence[Asked]) -> dict[str, Any]:
    classes = by_class(asked)
    return summarise(asked) | ({"classes": classes} if classes else {})


def _show(progress: Progress, config: Config, summary: dict[str, Any], what: str) -> None:
    progress.console.print(table(summary, f"{config.name}, stage {config.stage}, {what}"))
    progress.console.print(*class_tables(summary.get("classes", {}), f"{what}: "))
