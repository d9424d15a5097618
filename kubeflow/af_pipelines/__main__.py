"""Run the curriculum as a pipeline, on this machine or on a Kubeflow cluster.

    python -m af_pipelines compile --config configs/demo.yaml --output demo.yaml
    python -m af_pipelines run     --config configs/demo.yaml [key=value …]
    python -m af_pipelines submit  --config configs/af2_3b.yaml --cluster configs/cluster/gpu.yaml [key=value …]
    python -m af_pipelines status  --config configs/af2_3b.yaml
    python -m af_pipelines logs    --config configs/af2_3b.yaml [--step align] [--follow]
    python -m af_pipelines cancel  --config configs/af2_3b.yaml
    python -m af_pipelines resume  --config configs/af2_3b.yaml
    python -m af_pipelines reap    --cluster configs/cluster/gpu.yaml
    python -m af_pipelines smoke   --cluster configs/cluster/gpu.yaml
    python -m af_pipelines serve   --config configs/af2_3b.yaml --cluster configs/cluster/gpu.yaml
    python -m af_pipelines unserve --cluster configs/cluster/gpu.yaml
    python -m af_pipelines rollback --config configs/af2_3b.yaml --why TEXT [--cluster configs/cluster/gpu.yaml]

`run` works here and returns when the pipeline has ended; `submit` hands the same pipeline to Kubeflow and returns at
once. Both leave out what is done already. `status`, `logs`, `cancel` and `resume` mean the last run of this
configuration, wherever it was started. `serve` puts the registry's champion behind an address in the cluster;
`rollback` makes the previous champion the champion again (as `tools/promote.py rollback` does), which the server
follows within minutes, and with --cluster at once. key=value changes the configuration, cluster.key=value the cluster
file.

Exit codes: 0 done, 1 a step or the cluster failed, 2 the command line or a file cannot be used or another try would
fail the same way, 4 a stage is not good enough for the next one, 128 + n stopped by signal n (143: cancelled).
"""

import argparse
import sys
from collections.abc import Callable

from af_pipelines import commands
from megatron_af.entry import Cancelled, command
from megatron_af.pipeline.graph import PIPELINES

Command = Callable[[argparse.Namespace], int]


@command
def main(argv: list[str] | None = None) -> int:
    """The console command ``af-pipelines``."""
    options = _parser().parse_args(argv)
    try:
        verb: Command = options.command
        return verb(options)
    except Cancelled as stop:
        print(f"af-pipelines: {stop}; `af-pipelines resume` goes on", file=sys.stderr)
        return stop.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="af-pipelines", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True, metavar="command")

    def verb(name: str, command: Command, *, config: bool = True) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=(command.__doc__ or "").splitlines()[0])
        added.set_defaults(command=command)
        if config:
            added.add_argument("--config", required=True, help="top YAML file of the run")
        added.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys")
        return added

    for name, act in (("compile", commands.compile_), ("run", commands.run), ("submit", commands.submit)):
        started = verb(name, act)
        started.add_argument("--cluster", required=name == "submit", help="cluster file; none: this machine")
        started.add_argument("--pipeline", choices=PIPELINES, default="curriculum")
        if name == "compile":
            started.add_argument("--output", required=True, help="where the compiled pipeline is written")
    verb("status", commands.status)
    logs = verb("logs", commands.logs)
    logs.add_argument("--step", default="", help="only this step's lines")
    logs.add_argument("--follow", action="store_true", help="go on until the run has ended")
    verb("cancel", commands.cancel)
    verb("resume", commands.resume)
    verb("serve", commands.serve).add_argument("--cluster", required=True, help="cluster file")
    back = verb("rollback", commands.rollback)
    back.add_argument("--why", required=True, help="reason, kept with the version")
    back.add_argument("--cluster", default="", help="cluster file: roll it out there at once")
    on_the_cluster = {"unserve": commands.unserve, "roll-out": commands.roll_out, "smoke": commands.smoke}
    for name, act in {**on_the_cluster, "reap": commands.reap}.items():
        verb(name, act, config=False).add_argument("--cluster", required=True, help="cluster file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
