"""Train a small Audio Flamingo 2 on real recordings and see whether it hears, on a laptop CPU.

    python tools/demo.py            about a quarter of an hour on two cores (configs/demo.yaml)
    python tools/demo.py --long     up to an hour, hears more (configs/demo_long.yaml)
    python tools/demo.py --config FILE [key=value …]
    python tools/demo.py --prepare  only the recordings and scenes, as a pipeline's first step

Prepares recordings and scenes, trains every stage of the curriculum, asks held-out questions, prints a table by
skill and writes runs/NAME/summary.json. A run that was stopped goes on where it was. Exit codes: 0 done, 1 a stage
failed, 2 the configuration cannot run or another try would fail the same way, 128 + n stopped by signal n.
"""

import argparse
import sys
from pathlib import Path

from megatron_af.entry import command

CONFIGS = Path(__file__).parents[1] / "configs"


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--config", default=str(CONFIGS / "demo.yaml"), help="top YAML file of the run")
    which.add_argument("--long", action="store_const", dest="config", const=str(CONFIGS / "demo_long.yaml"))
    parser.add_argument("--prepare", action="store_true", help="only prepare recordings and scenes")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys")
    arguments = parser.parse_args()
    from megatron_af.demo.run import prepare_only, run_demo

    run = prepare_only if arguments.prepare else run_demo
    run(arguments.config, arguments.overrides)
    return 0


if __name__ == "__main__":
    sys.exit(main())
