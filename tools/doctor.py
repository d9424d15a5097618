"""What of this machine works for training, what will be slow, and what to do about it.

    python tools/doctor.py [--config FILE] [--cluster FILE] [key=value ...]

Tries Python and packages, the GPU and its driver, Transformer Engine, DALI, sound files, the exchange between processes
(NCCL or gloo), the host's name, disk and shared memory, MLflow; with ``--config``, those that the run would use; with
``--cluster``, whether that cluster answers. Exit codes: 0 nothing is broken, 2 something is.
"""

import argparse
import sys

from rich.console import Console

from megatron_af.config import Config
from megatron_af.config.loading import load_config
from megatron_af.entry import command


@command
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="top YAML file of the run that is meant")
    parser.add_argument("--cluster", help="cluster file: ask that cluster, too (docs/kubeflow.md)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys of the run")
    options = parser.parse_intermixed_args(arguments)
    config = load_config(options.config, options.overrides) if options.config else Config(name="doctor")
    from megatron_af.doctor.examine import examine
    from megatron_af.doctor.findings import exit_code, table, verdict

    console = Console(highlight=False)
    with console.status("looking around …"):
        found = list(examine(config))
        if options.cluster:
            from af_pipelines.reach import reach

            found.append(reach(options.cluster))
    console.print(table(found))
    console.print(f"\n{verdict(found)}")
    return exit_code(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
