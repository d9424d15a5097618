"""A stage's answers: every question of its evaluation sets asked, the tables printed, the results written.

    measure(config, few_shot_sets(config, "clotho", sets, [0, 4]), "clotho")     # a collective of the whole world

Results of no examples are the stage's own (``megatron_af/runs/results.py``); those of K stand beside them in
``few_shot/K_from_DATASET``, in the same files.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from rich.console import Console

from megatron_af.config import Config
from megatron_af.evaluate.classes import by_class, class_tables
from megatron_af.evaluate.few_shot import Sets, cut_short, few_shot_table
from megatron_af.evaluate.hearing import AskedLine, answer_lines, ask_all, questions_of, summarise, table
from megatron_af.files import write
from megatron_af.inference.attention import draw, fixed_samples
from megatron_af.inference.listener import Listener
from megatron_af.progress import Progress, silent
from megatron_af.runs.results import bind_results

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
        for shots, shown in plan.items():
            found[shots], lines = {}, list[str]()
            for name, rows in shown.items():
                asked = ask_all(listener, rows)
                found[shots][name] = summary = summarise(asked)
                if classes := by_class(asked):
                    summary["classes"] = classes
                lines += answer_lines(name, asked)
                if shots:
                    summary["overall"]["cut_short"] = cut_short(listener.prompt, rows)
                if first:
                    behind = f", {shots} shots" if shots else ""
                    progress.console.print(table(summary, f"{config.name}, stage {config.stage}, {name}{behind}"))
                    progress.console.print(*class_tables(classes, f"{name}{behind}: "))
                if first and not shots:
                    draw(listener.looks(fixed_samples(rows, DRAWN)), folder / "pictures", f"attention-{name}")
            if first:
                at = folder / f"few_shot/{shots}_from_{source}" if shots else folder
                write(at / "hearing.json", json.dumps(found[shots], indent=1))
                write(at / "answers.jsonl", "\n".join(lines) + "\n")
        line.end()
        if first and any(plan):
            progress.console.print(few_shot_table(found, source))
    if first and 0 in found:
        bind_results(config, [folder / "hearing.json", folder / "answers.jsonl"])
    listener.close()
