"""Which training rows sound alike: index them, and write few-shot training data of each row and its neighbours.

    torchrun --nproc_per_node 2 tools/build_retrieval.py index      --config FILE [key=value ...]
    torchrun --nproc_per_node 2 tools/build_retrieval.py interleave --config FILE [key=value ...]

``index`` embeds the clips of ``retrieval.datasets``, and of all that ``data.datasets.*.neighbours`` name, with the
newest checkpoint of ``retrieval.stage``. ``interleave`` does the same and then writes the data sets that have
``neighbours``. Both go on where an interrupted run stopped, and embed only what is new (docs/retrieval.md).
"""

import argparse
import sys

from dali_pipes.waves import AudioError
from megatron_af.config import Config, ConfigError
from megatron_af.config.loading import load_config
from megatron_af.entry import command, importing
from megatron_af.progress import Progress, silent
from megatron_af.runs.check import retrieval_problems


def build(config: Config, command: str) -> None:
    # Imported only now: a command answers at once, and megatron-core must be made portable before its modules run.
    with importing():
        import torch.distributed as dist

        from megatron_af.parallel.world import join_world

        join_world()
        from megatron_af.retrieval.build import Builder

    made = {name: dataset.neighbours.of for name, dataset in config.data.datasets.items() if dataset.neighbours}
    with Progress() if dist.get_rank() == 0 else silent() as progress, Builder(config, progress) as builder:
        for dataset in dict.fromkeys([*config.retrieval.datasets, *made.values()]):
            if command == "index" or dataset not in made.values():
                builder.index(dataset)
        if command == "interleave":
            for name in made:
                builder.interleave(name)
    dist.destroy_process_group()


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["index", "interleave"])
    parser.add_argument("--config", required=True, help="top YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys")
    arguments = parser.parse_intermixed_args()
    config = load_config(arguments.config, arguments.overrides)
    if problems := list(retrieval_problems(config)):
        raise ConfigError(f"{arguments.config} cannot be used", problems)
    try:
        build(config, arguments.command)
    except AudioError as error:
        raise ConfigError(f"{error}; prepare the data set (tools/prepare_data.py), which leaves it out") from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
