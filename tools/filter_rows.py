"""Keep the rows whose text fits their audio, by CLAP similarity.

    torchrun --nproc_per_node 2 tools/filter_rows.py --config FILE stage=clap --rows NAME --least 0.3 --output OUT.jsonl

``--rows`` is a data set of ``data.datasets``; the text of a row is its first caption, or else all its answers.
``OUT.jsonl.report`` has the numbers, with deciles of the similarity to choose the threshold by.
"""

import argparse
import json
import sys
from pathlib import Path

import torch.distributed as dist

from megatron_af.config import ConfigError
from megatron_af.config.loading import load_config
from megatron_af.data.rows import to_json
from megatron_af.entry import command
from megatron_af.evaluate.hearing import evaluation_rows
from megatron_af.files import write
from megatron_af.parallel.world import join_world


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="top YAML file of the run")
    parser.add_argument("--rows", required=True, help="data set to filter")
    parser.add_argument("--least", required=True, type=float, help="similarity that a row must have")
    parser.add_argument("--output", required=True, type=Path, help="JSONL of the rows that are kept")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys")
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    if arguments.rows not in config.data.datasets:
        known = ", ".join(config.data.datasets)
        raise ConfigError("no such rows", [f"--rows {arguments.rows}: not in data.datasets, which has {known}"])
    join_world()
    # Imported only now: megatron-core must have been made portable before its modules run.
    from megatron_af.evaluate.clap_filter import filter_rows
    from megatron_af.inference.embedder import ClapEmbedder

    rows = evaluation_rows(config, arguments.rows)
    embedder = ClapEmbedder(config)
    kept, report = filter_rows(embedder, rows, least=arguments.least)
    embedder.close()
    if dist.get_rank() == 0:
        write(arguments.output, "".join(to_json(row) + "\n" for row in kept))
        write(Path(f"{arguments.output}.report"), json.dumps(report, indent=1) + "\n")
        print(f"{len(kept):,} of {len(rows):,} rows kept; {arguments.output}.report has the deciles of the similarity")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
