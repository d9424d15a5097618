"""Keep the rows whose text fits their audio, and of those that are nearly the same one, by CLAP similarity.

    torchrun --nproc_per_node 2 tools/filter_rows.py --config FILE stage=clap --rows NAME --least 0.3 --output OUT.jsonl
    torchrun --nproc_per_node 2 tools/filter_rows.py --config FILE stage=clap --rows NAME --most-alike 0.98 \\
        --draw 5000 --output OUT.jsonl

``--rows`` is a data set of ``data.datasets``; the text of a row is its first caption, or else all its answers, or else
its labels. ``--draw`` keeps as many rows as it says, as many from each cluster of their texts. ``OUT.jsonl.report`` has
the numbers, with deciles of the similarities to choose thresholds by; ``OUT.jsonl.dropped`` names every row that was
dropped, with the reason.
"""

import argparse
import json
import sys
from pathlib import Path

from megatron_af.config import ConfigError
from megatron_af.config.loading import load_config
from megatron_af.data.rows import to_json
from megatron_af.entry import command, importing
from megatron_af.evaluate.hearing import evaluation_rows
from megatron_af.files import write


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="top YAML file of the run")
    parser.add_argument("--rows", required=True, help="data set to filter")
    parser.add_argument("--least", type=float, help="similarity of text and audio that a row must have")
    parser.add_argument("--most-alike", type=float, help="similarity of a recording to another that it may have")
    parser.add_argument("--most-alike-text", type=float, help="similarity of a text to another that it may have")
    parser.add_argument("--draw", type=int, help="rows to keep in the end, from all clusters of texts alike")
    parser.add_argument("--output", required=True, type=Path, help="JSONL of the rows that are kept")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys")
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    asked = arguments.least, arguments.most_alike, arguments.most_alike_text, arguments.draw
    if all(value is None for value in asked) or (arguments.draw is not None and arguments.draw < 1):
        problem = "give --least, --most-alike, --most-alike-text or --draw (1 or more)"
        raise ConfigError("nothing says which rows to keep", [problem])
    if arguments.rows not in config.data.datasets:
        known = ", ".join(config.data.datasets)
        raise ConfigError("no such rows", [f"--rows {arguments.rows}: not in data.datasets, which has {known}"])
    # Imported only now: a command answers at once, and megatron-core must be made portable before its modules run.
    with importing():
        import torch.distributed as dist

        from megatron_af.parallel.world import join_world

        join_world()
        from megatron_af.evaluate.clap_filter import Wanted, filtered, judged
        from megatron_af.inference.embedder import ClapEmbedder

    wanted = Wanted(
        least=arguments.least,
        most_alike=arguments.most_alike,
        most_alike_text=arguments.most_alike_text,
        draw=arguments.draw,
        seed=config.seed,
    )
    rows = evaluation_rows(config, arguments.rows)
    embedder = ClapEmbedder(config)
    embedded = judged(embedder, rows, wanted)
    embedder.close()
    if dist.get_rank() == 0:
        kept, report, dropped = filtered(embedded, wanted)
        write(arguments.output, "".join(to_json(row) + "\n" for row in kept))
        write(Path(f"{arguments.output}.report"), json.dumps(report, indent=1) + "\n")
        write(Path(f"{arguments.output}.dropped"), "".join(json.dumps(entry) + "\n" for entry in dropped))
        print(f"{len(kept):,} of {len(rows):,} rows kept; {arguments.output}.report has the deciles of the similarity")
        for reason, count in report["dropped"].items():
            print(f"  {count:,} dropped: {reason}")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
