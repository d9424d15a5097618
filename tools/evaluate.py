"""How good is a trained stage? Asks what its objective teaches, and writes numbers that gates and reports read.

    torchrun --nproc_per_node 2 tools/evaluate.py --config configs/demo.yaml stage=long [key=value …]

measures on the data sets of ``curriculum.STAGE.evaluation`` and the benchmarks (``configs/benchmarks``) of
``curriculum.STAGE.suites``, and writes into the stage's folder. A stage that answers: ``hearing.json`` and
``answers.jsonl`` (the right audio, and audio exchanged between samples), ``pictures/attention-….png``, and
``suite-NAME.json`` and ``.parquet``. A contrastive stage: ``clap-SET.json`` and ``suite-NAME.json``.

With examples, the nearest of a training split's indexed rows, into ``few_shot/K_from_DATASET/`` (docs/retrieval.md):

    … tools/evaluate.py --config configs/demo.yaml --shots 0,1,4,8 --from DATASET stage=long [key=value …]

Any rows, benchmarks or checkpoint of the stage's model, beside the stage's own results, into ``FOLDER/NAME``; what was
stopped goes on:

    … tools/evaluate.py --config configs/demo.yaml --rows NAME,NAME --output FOLDER stage=long [key=value …]
    … tools/evaluate.py --config configs/demo.yaml --suite NAME,NAME --output FOLDER stage=long [key=value …]
    … tools/evaluate.py --config configs/demo.yaml --checkpoint FOLDER --output FOLDER stage=long [key=value …]
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from megatron_af.config import Config, ConfigError
from megatron_af.config.loading import read_config
from megatron_af.entry import command, importing
from megatron_af.evaluate.few_shot import few_shot_problems, few_shot_sets
from megatron_af.evaluate.hearing import measured_rows
from megatron_af.files import require_room
from megatron_af.runs.check import validate_evaluation
from megatron_af.runs.paths import resolve_entry


def _names(given: str) -> tuple[str, ...]:
    return tuple(name for name in given.split(",") if name)


def _asking(config: Config, rows: tuple[str, ...], suites: tuple[str, ...]) -> Config:
    """The configuration with these data sets and benchmarks to measure its stages on."""
    asked = partial(replace, evaluation=rows, suites=suites, **({} if rows else {"calibrate": ""}))
    return replace(config, curriculum={name: asked(stage) for name, stage in config.curriculum.items()})


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="top YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys")
    parser.add_argument("--shots", type=_names, default=("0",), help="examples before a question, such as 4 or 0,1,8")
    parser.add_argument("--from", dest="source", default="", help="data set of retrieval.datasets to take them from")
    parser.add_argument("--rows", type=_names, default=(), help="data sets to measure on, in place of the stage's")
    parser.add_argument("--suite", type=_names, default=(), help="benchmarks to measure on, in place of the stage's")
    parser.add_argument("--checkpoint", type=Path, help="folder of the checkpoint, in place of the newest")
    parser.add_argument("--output", type=Path, help="folder for results that are not the stage's own")
    arguments = parser.parse_intermixed_args()
    shots = sorted({int(number) for number in arguments.shots})
    config, unread = read_config(arguments.config, arguments.overrides)
    elsewhere = bool(arguments.rows or arguments.suite or arguments.checkpoint or arguments.output)
    if elsewhere and (not arguments.output or shots != [0]):
        problem = "--rows, --suite and --checkpoint need --output FOLDER, and go without --shots: name one"
        raise ConfigError("nowhere to write", [problem])
    config = _asking(config, arguments.rows, arguments.suite) if arguments.rows or arguments.suite else config
    validate_evaluation(config, unread, arguments.checkpoint)
    if problems := list(few_shot_problems(config, arguments.source, shots)):
        raise ConfigError(f"stage {config.stage} of {config.name} cannot be asked with examples", problems)
    require_room(arguments.output or config.stage_folder(config.stage))
    # Imported only now: a command answers at once, and megatron-core must be made portable before its modules run.
    with importing():
        import torch.distributed as dist

        from megatron_af.parallel.world import join_world

        join_world()
        from megatron_af.evaluate.measure import measure, measure_contrastive, measure_elsewhere
        from megatron_af.evaluate.suites import measure_suites_behind
        from megatron_af.tracking.evaluation import log_few_shot

    stage = config.curriculum[config.stage]
    sets = {name: measured_rows(config, name) for name in stage.evaluation}
    checkpoint = arguments.checkpoint or resolve_entry(config, config.stage)
    if sets and stage.objective == "contrastive":
        measure_contrastive(config, sets, checkpoint, arguments.output)
    elif sets and elsewhere:
        measure_elsewhere(config, sets, checkpoint, arguments.output)
    elif sets:
        measure(config, few_shot_sets(config, arguments.source, sets, shots), arguments.source)
    measure_suites_behind(config, arguments.source, shots, checkpoint, arguments.output)
    if dist.get_rank() == 0:
        log_few_shot(config, shots, arguments.source)
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
