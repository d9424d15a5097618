"""Memory, time and layout of a run before anything starts; needs no GPU.

    python tools/plan.py --config configs/af2_3b.yaml --gpus 64 [--gpu h100] [--stage finetune] [key=value …]

Prints what a rank needs by kind and what a step takes by part for every stage as it is configured, the fastest layouts
that fit, and, where the configured one does not, the nearest change that does. How long the samples are it takes from
the data where it is there, from a file of ``configs/lengths`` with ``--lengths``, and else as long as the stage allows.
``--json`` and ``--picture`` (SVG or PNG) keep the numbers and each stage's time line. Exit code 2: something does not
fit.
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from megatron_af.config import ConfigError
from megatron_af.config.errors import suggestion
from megatron_af.config.loading import load_config
from megatron_af.entry import NO_USE, command, importing
from megatron_af.files import write


@command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="top YAML file of the run")
    parser.add_argument("--gpus", required=True, type=int, help="how many")
    parser.add_argument("--gpu", default="h100", help="a file of configs/gpus, or the path of another one")
    parser.add_argument("--stage", default="", help="only this one; without it every stage of the curriculum")
    parser.add_argument("--lengths", default="", help="a file of configs/lengths, or the path of another one")
    parser.add_argument("--layouts", type=int, default=5, help="how many of the fastest are shown; 0: none is sought")
    parser.add_argument("--json", default="", help="file for the numbers")
    parser.add_argument("--picture", default="", help="file for the time lines, .svg or .png")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys")
    options = parser.parse_args(arguments)
    config = load_config(options.config, options.overrides)
    if options.stage and options.stage not in config.curriculum:
        known = suggestion(options.stage, list(config.curriculum))
        raise ConfigError(f"--stage {options.stage}: not in curriculum{known}")
    if options.gpus < 1:
        raise ConfigError(f"--gpus {options.gpus}: give 1 or more")

    # Imported only now: megatron-core must have been made portable before its modules run.
    with importing():
        from megatron_af.parallel.device import make_megatron_portable

        make_megatron_portable()
        from megatron_af.plan.gpu import read_gpu
        from megatron_af.plan.lengths import read_lengths
        from megatron_af.plan.picture import draw
        from megatron_af.plan.planning import plan_run
        from megatron_af.plan.report import record, tables, verdicts

    gpu, given = read_gpu(options.gpu), read_lengths(options.lengths) if options.lengths else {}
    names = [options.stage] if options.stage else list(config.curriculum)
    planned, refused = plan_run(config, names, gpu, options.gpus, given, most=options.layouts)
    console = Console(highlight=False)
    console.print(*tables(planned))
    console.print("\n".join([*refused, *verdicts(planned)]), soft_wrap=True)
    if options.json:
        write(Path(options.json), json.dumps(record(planned, refused), indent=1) + "\n")
    if options.picture:
        draw(planned, Path(options.picture))
    return 0 if not refused and all(one.plan.fits and not one.problem for one in planned) else NO_USE


if __name__ == "__main__":
    sys.exit(main())
