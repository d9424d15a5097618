"""Trains a stage as ``tools/pretrain_af.py`` does, and writes down when it passed what: a worker of ``bench/start.py``.

    torchrun --nproc_per_node 2 -m megatron_af.bench.start_marks FILE --config RUN.yaml stage=align

A mark is the name of what has just ended, the clock that all processes of a machine share, and this process's processor
time, both in seconds. Nothing but the standard library is imported before the first one.
"""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOOL = Path(__file__).parents[2] / "tools/pretrain_af.py"
MARKS: list[tuple[str, float, float]] = []


def mark(name: str) -> None:
    MARKS.append((name, time.monotonic(), time.process_time()))


def marking(owner: Any, function: str, name: str) -> None:
    """From now on, the end of every call is marked."""
    original: Callable[..., Any] = getattr(owner, function)

    def marked(*arguments: Any, **named: Any) -> Any:
        try:
            return original(*arguments, **named)
        finally:
            mark(name)

    setattr(owner, function, marked)


def launcher_seconds() -> float:
    """Processor time of the process that started this one."""
    fields = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    mark("interpreter")
    launched_by = launcher_seconds()
    file = Path(sys.argv.pop(1))
    spec = importlib.util.spec_from_file_location("pretrain_af", TOOL)
    assert spec is not None and spec.loader is not None
    pretrain_af = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pretrain_af)
    train = pretrain_af.train

    def followed(config: Any, world_size: int) -> str:
        mark("configuration read and checked")
        from megatron_af.entry import importing

        with importing():
            import torch.distributed as dist

            mark("import torch")
            from megatron_af.parallel.device import make_megatron_portable

            make_megatron_portable()
            from megatron_af.parallel import world
            from megatron_af.plan import check

            mark("import megatron-core")
            from megatron_af.parallel import groups
            from megatron_af.tracking import callback  # noqa: F401  (what the command would import next)
            from megatron_af.train import callbacks, checkpoint, stage_result, trainer  # noqa: F401

        mark("import trainer")
        marking(check, "plan_here", "plan")
        marking(world, "join_world", "peers met")
        marking(groups, "initialize", "groups")
        kind = trainer.Trainer
        marking(trainer, "objective_of", "callbacks")
        marking(kind, "_entries", "tokenizer")
        marking(kind, "_load_weights", "model built")
        marking(kind, "__init__", "optimizer and data")
        marking(kind, "_next_batch", "batch")
        marking(kind, "_train_step", "step")
        marking(kind, "save", "checkpoint handed over")
        marking(checkpoint.Checkpoints, "close", "checkpoint written")
        marking(kind, "train", "callbacks ended")
        marking(kind, "__exit__", "data and groups closed")
        marking(dist, "destroy_process_group", "peers left")
        return train(config, world_size)

    setattr(pretrain_af, "train", followed)  # noqa: B010 (a module's names are not known to mypy)
    try:
        return int(pretrain_af.main())
    finally:
        mark("command returned")
        from megatron_af.files import write

        if os.environ["RANK"] == "0":
            write(file, json.dumps({"marks": MARKS, "launcher_seconds": launched_by}))


if __name__ == "__main__":
    sys.exit(main())
