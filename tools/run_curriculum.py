"""Train a whole curriculum on this machine; what is done is not done again, what failed goes on.

    python tools/run_curriculum.py --config configs/demo.yaml                     every stage
    python tools/run_curriculum.py --config configs/demo.yaml --dry-run           what would run, and why
    python tools/run_curriculum.py --config configs/demo.yaml --from tune         this stage and those behind it
    python tools/run_curriculum.py --config configs/demo.yaml --only align        one stage
    python tools/run_curriculum.py --config configs/demo.yaml seed=2 name=demo_2  with changes to single keys

A stage is trained again only if its configuration, its data or the checkpoint it starts from changed; its old result
is then kept beside it as NAME.replaced. What a stage prints is also kept in OUTPUT/NAME/pipeline/logs.

Exit codes: 0 done, 1 a stage failed (run it again to resume), 2 the configuration cannot run, or data or a checkpoint
is not there, 4 a stage did not pass its exit gate, 128 + n stopped by signal n: SIGTERM or SIGINT end the stage under
way with a checkpoint, from which the same command goes on.
"""

import argparse
import sys

from megatron_af.config import ConfigError
from megatron_af.config.loading import read_config
from megatron_af.entry import command
from megatron_af.pipeline.curriculum import plan, run_curriculum
from megatron_af.runs.check import check


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="top YAML file of the run")
    parser.add_argument("--from", dest="start", default="", metavar="STAGE", help="begin at this stage")
    parser.add_argument("--only", default="", metavar="STAGE", help="only this stage")
    parser.add_argument("--dry-run", action="store_true", help="say what would run and why, and end")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys")
    arguments = parser.parse_intermixed_args()
    config, unread = read_config(arguments.config, arguments.overrides)
    if unread.problems:
        found = check(config, config.launch.nodes * config.launch.processes_per_node)
        raise ConfigError(f"{config.name} cannot run", unread.and_also(found))
    if arguments.dry_run:
        steps = plan(config, arguments.start, arguments.only)
        print(*steps, sep="\n")
        return 2 if any(step.action == "blocked" for step in steps) else 0
    run_curriculum(config, start=arguments.start, only=arguments.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
