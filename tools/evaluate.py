"""How good is a trained stage? Asks what its objective teaches, and writes numbers that gates and reports read.

    torchrun --nproc_per_node 2 tools/evaluate.py --config configs/demo.yaml stage=long [key=value …]

measures on the data sets that ``curriculum.STAGE.evaluation`` names. A stage that answers is asked their questions with
the right audio and with audio exchanged between samples: a table for each set, ``hearing.json`` (the tables),
``answers.jsonl`` (every answer) and ``pictures/attention-….png`` (where the first answers looked) in the stage's
folder. A contrastive stage: retrieval, zero-shot classes, order and attributes, paraphrases, ``clap-SET.json``.

With examples, the nearest of a training split's indexed rows (docs/retrieval.md), the same questions again, and what
they gain; ``few_shot/K_from_DATASET/`` gets the same files, and those of 0 shots are the stage's own:

    … tools/evaluate.py --config configs/demo.yaml --shots 0,1,4,8 --from DATASET stage=long [key=value …]

Any rows, and any checkpoint of the stage's model, without touching the stage's own results; a measurement that was
stopped goes on, and files lie in ``FOLDER/NAME``:

    … tools/evaluate.py --config configs/demo.yaml --rows NAME,NAME --output FOLDER stage=long [key=value …]
    … tools/evaluate.py --config configs/demo.yaml --checkpoint FOLDER --output FOLDER stage=long [key=value …]
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from megatron_af.config import Config, ConfigError
from megatron_af.config.loading import read_config
from megatron_af.entry import command
from megatron_af.evaluate.few_shot import few_shot_problems, few_shot_sets
from megatron_af.evaluate.hearing import evaluation_rows
from megatron_af.parallel.world import join_world
from megatron_af.runs.check import validate_evaluation
from megatron_af.runs.paths import resolve_entry


def _numbers(given: str) -> list[int]:
    return sorted({int(number) for number in given.split(",")})


def _asking(config: Config, rows: list[str]) -> Config:
    """The configuration with these data sets to measure its stages on."""
    asked = {name: replace(stage, evaluation=tuple(rows)) for name, stage in config.curriculum.items()}
    return replace(config, curriculum=asked)


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="top YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys")
    parser.add_argument("--shots", type=_numbers, default=[0], help="examples before each question, such as 4 or 0,1,8")
    parser.add_argument("--from", dest="source", default="", help="data set of retrieval.datasets to take them from")
    parser.add_argument("--rows", default="", help="data sets to measure on, in place of the stage's evaluation")
    parser.add_argument("--checkpoint", type=Path, help="folder of the checkpoint, in place of the newest")
    parser.add_argument("--output", type=Path, help="folder for the results; with --rows or --checkpoint")
    arguments = parser.parse_intermixed_args()
    shots: list[int] = arguments.shots
    config, unread = read_config(arguments.config, arguments.overrides)
    elsewhere = bool(arguments.rows or arguments.checkpoint or arguments.output)
    if elsewhere and (not arguments.output or shots != [0]):
        raise ConfigError(
            "nowhere to write", ["--rows and --checkpoint need --output FOLDER, and go without --shots: name one"]
        )
    if arguments.rows:
        config = _asking(config, arguments.rows.split(","))
    validate_evaluation(config, unread, arguments.checkpoint)
    if problems := list(few_shot_problems(config, arguments.source, shots)):
        raise ConfigError(f"stage {config.stage} of {config.name} cannot be asked with examples", problems)
    join_world()
    # Imported only now: megatron-core must have been made portable before its modules run.
    from megatron_af.evaluate.measure import measure, measure_contrastive, measure_elsewhere

    sets = {name: evaluation_rows(config, name) for name in config.curriculum[config.stage].evaluation}
    checkpoint = arguments.checkpoint or resolve_entry(config, config.stage)
    if config.curriculum[config.stage].objective == "contrastive":
        measure_contrastive(config, sets, checkpoint, arguments.output)
    elif elsewhere:
        measure_elsewhere(config, sets, checkpoint, arguments.output)
    else:
        measure(config, few_shot_sets(config, arguments.source, sets, shots), arguments.source)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
