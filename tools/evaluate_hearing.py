"""Does a trained stage hear? Accuracy with the right audio and with audio exchanged between samples, by skill.

    torchrun --nproc_per_node 2 tools/evaluate_hearing.py --config configs/demo.yaml stage=long [key=value …]

Asks the questions of the data sets that ``curriculum.STAGE.evaluation`` names, prints a table for each and writes
``hearing.json`` (the tables), ``answers.jsonl`` (every answer) and ``pictures/attention-….png`` (where the answers to
the first samples looked) into the stage's folder.
"""

import argparse
import dataclasses
import json
import os
import sys

import torch.distributed as dist
from rich.console import Console

from megatron_af.config import ConfigError
from megatron_af.config.loading import read_config
from megatron_af.evaluate.hearing import AskedLine, ask_all, evaluation_rows, questions_of, summarise, table
from megatron_af.files import write
from megatron_af.parallel.world import join_world
from megatron_af.progress import Progress, silent
from megatron_af.runs.check import validate_evaluation
from megatron_af.runs.results import bind_results

DRAWN = 4
"""Answers of each data set that are drawn."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="top YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys")
    arguments = parser.parse_args()
    try:
        config, unread = read_config(arguments.config, arguments.overrides)
        validate_evaluation(config, "answer", unread)
    except ConfigError as error:
        if os.environ.get("RANK", "0") == "0":
            print(error, file=sys.stderr)
        return 2
    join_world()
    # Imported only now: megatron-core must have been made portable before its modules run.
    from megatron_af.inference.attention import draw, fixed_samples
    from megatron_af.inference.listener import Listener

    folder, summaries, lines = config.stage_folder(config.stage), {}, []
    sets = {name: evaluation_rows(config, name) for name in config.curriculum[config.stage].evaluation}
    questions = sum(len(questions_of(rows)) for rows in sets.values())
    with Progress(Console(width=110)) if dist.get_rank() == 0 else silent() as progress:
        line = AskedLine(progress, 2 * questions, dist.get_world_size())
        listener = Listener(config, watch=line)
        for name, rows in sets.items():
            asked = ask_all(listener, rows)
            summaries[name] = summarise(asked)
            for number, question in enumerate(asked):
                sample = {"id": f"{name}/{number}", "group": f"{name}/{question.row}", "right": int(question.right)}
                lines.append(json.dumps({"set": name, **sample, **dataclasses.asdict(question)}))
            if dist.get_rank() == 0:
                progress.console.print(table(summaries[name], f"{config.name}, stage {config.stage}, {name}"))
                draw(listener.looks(fixed_samples(rows, DRAWN)), folder / "pictures", f"attention-{name}")
        line.end()
    if dist.get_rank() == 0:
        write(folder / "hearing.json", json.dumps(summaries, indent=1))
        write(folder / "answers.jsonl", "\n".join(lines) + "\n")
        bind_results(config, [folder / "hearing.json", folder / "answers.jsonl"])
    listener.close()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
