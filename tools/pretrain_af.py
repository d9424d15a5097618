"""Train one stage of Audio Flamingo on any number of processes.

    torchrun --nproc_per_node 2 tools/pretrain_af.py --config configs/demo.yaml stage=align [key=value …]

The stage starts from the weights its ``entry`` names, or goes on from its newest checkpoint if it has one. SIGTERM,
SIGINT and SIGUSR1 end it after the step under way, with a checkpoint; torchrun kills after 30 s, unless it is given
``--shutdown-timeout``, or is ``python -m megatron_af.pipeline.torchrun``.

Exit codes of each process: 0 done, 1 another try may succeed, 2 the configuration cannot run, or not from the
checkpoint that is there, 3 stopped by a signal, 42 gradients that are not finite step after step, or a loss that spikes
again and again: the next try would meet them again, 128 + n ended by signal n before its first step. Plain torchrun
makes 1 of them all; ``python -m megatron_af.pipeline.torchrun`` hands them on (128 + n where it was stopped itself).
"""

import argparse
import os
import sys
from contextlib import nullcontext
from dataclasses import replace

from megatron_af.config import Config
from megatron_af.config.keys import describe
from megatron_af.config.loading import read_config
from megatron_af.entry import command, importing
from megatron_af.runs.check import validate
from megatron_af.runs.lock import StageLock
from megatron_af.runs.records import claim
from megatron_af.runs.sizes import resolve_sizes
from megatron_af.runs.whole import settle

EXIT_CODES = {"done": 0, "stopped": 3, "hopeless": 42}


@command
def main(description: str | None = __doc__, objective: str = "") -> int:
    """
    Args:
        objective: where no ``stage`` is given, the first stage with this objective is meant.
    """
    parser = argparse.ArgumentParser(
        description=description, epilog=describe(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="top YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to single keys")
    arguments = parser.parse_args()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    config, unread = read_config(arguments.config, arguments.overrides)
    if objective and not config.stage:
        fitting = [name for name, stage in config.curriculum.items() if stage.objective == objective]
        config = replace(config, stage=fitting[0] if fitting else "")
    validate(config, world_size, unread)
    config = resolve_sizes(config, world_size)
    first = os.environ.get("RANK", "0") == "0"
    with StageLock(config.stage_folder(config.stage)) if first else nullcontext():
        if first:
            settle(config.stage_folder(config.stage) / "checkpoints", print)
            claim(config)
        return EXIT_CODES[train(config, world_size)]


def train(config: Config, world_size: int) -> str:
    """Train ``config.stage``, its sizes resolved, on this process and its peers: a key of ``EXIT_CODES``."""
    # Imported only now: a command answers at once, and megatron-core must be made portable before its modules run.
    with importing():
        import torch.distributed as dist

        from megatron_af.parallel.device import make_megatron_portable
        from megatron_af.parallel.world import join_world, patience

        make_megatron_portable()
        from megatron_af.plan.beside import BesidePlan
        from megatron_af.plan.check import plan_here, require_fit
        from megatron_af.tracking.callback import MLflowTracking
        from megatron_af.train.callbacks import Callback, EndHangs, LogLine, StopOnSignal, TrainerStatus
        from megatron_af.train.callbacks.spikes import LossSpike
        from megatron_af.train.optimizer import NonFiniteGradient
        from megatron_af.train.stage_result import StageResult
        from megatron_af.train.trainer import train_stage

    require_fit(plan := plan_here(config, world_size))
    join_world(patience(config.launch.hang_seconds))

    def callbacks() -> list[Callback]:
        followers = [LogLine(config.log_every_steps), StageResult(), MLflowTracking(config), TrainerStatus()]
        # the plan stands before those who keep its numbers
        return [*([BesidePlan(plan)] if plan else []), *followers, stop, EndHangs(config.launch.hang_seconds)]

    stop = StopOnSignal()  # one, so that it hears what comes between two starts
    try:
        reason = train_stage(config, callbacks)
    except (NonFiniteGradient, LossSpike) as error:  # on all processes alike
        print(error, file=sys.stderr, flush=True)
        return "hopeless"
    dist.destroy_process_group()
    return reason


if __name__ == "__main__":
    sys.exit(main())
