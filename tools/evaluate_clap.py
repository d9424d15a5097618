"""Measure a contrastive stage: retrieval, zero-shot classes, order and attributes, paraphrases.

    torchrun --nproc_per_node 2 tools/evaluate_clap.py --config configs/demo.yaml stage=clap --rows test [--json FILE]

``--rows`` is a data set of ``data.datasets``. Its rows bring captions; negatives, further captions and ``meta.class``
where they have them.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from rich.console import Console

from megatron_af.config import ConfigError
from megatron_af.config.loading import read_config
from megatron_af.entry import command
from megatron_af.evaluate.hearing import evaluation_rows
from megatron_af.files import write
from megatron_af.parallel.world import join_world
from megatron_af.runs.check import validate_evaluation
from megatron_af.runs.results import bind_results


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="top YAML file of the run")
    parser.add_argument("--rows", required=True, help="data set to evaluate on")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys, stage=NAME first")
    arguments = parser.parse_intermixed_args()
    config, unread = read_config(arguments.config, arguments.overrides)
    if arguments.rows not in config.data.datasets:
        known = ", ".join(config.data.datasets)
        raise ConfigError("no such rows", [f"--rows {arguments.rows}: not in data.datasets, which has {known}"])
    asked = {name: replace(stage, evaluation=(arguments.rows,)) for name, stage in config.curriculum.items()}
    validate_evaluation(replace(config, curriculum=asked), "contrastive", unread)
    join_world()
    # Imported only now: megatron-core must have been made portable before its modules run.
    from megatron_af.evaluate.clap import evaluate_clap, table
    from megatron_af.inference.embedder import ClapEmbedder

    rows = evaluation_rows(config, arguments.rows)
    embedder = ClapEmbedder(config)
    report = evaluate_clap(embedder, rows)
    embedder.close()
    if dist.get_rank() == 0:
        Console().print(table(report, f"{config.name}, stage {config.stage}, {len(rows)} rows of {arguments.rows}"))
        if arguments.json:
            write(arguments.json, json.dumps(report, indent=1))
            if arguments.json.parent.resolve() == config.stage_folder(config.stage).resolve():
                bind_results(config, [arguments.json])
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
