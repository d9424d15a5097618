"""A training tool in small: joins the process group, counts steps, checkpoints, resumes, and fails when told to.

    … standin_train.py FOLDER --steps 5 [--crash-at STEP [--exit CODE] | --kill-at STEP] [--always] [--hang]

It fails only on its first try (a marker file in FOLDER) unless ``--always``, so that a restart is seen to resume.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

arguments = argparse.ArgumentParser()
arguments.add_argument("folder", type=Path)
arguments.add_argument("--steps", type=int, default=4)
arguments.add_argument("--crash-at", type=int, default=0)
arguments.add_argument("--exit", type=int, default=0)
arguments.add_argument("--kill-at", type=int, default=0)
arguments.add_argument("--always", action="store_true")
arguments.add_argument("--hang", action="store_true")
options = arguments.parse_args()

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
options.folder.mkdir(parents=True, exist_ok=True)
(options.folder / f"pid-{rank}").write_text(str(os.getpid()))
checkpoint, failed = options.folder / "checkpoint", options.folder / "failed"
start = int(checkpoint.read_text()) if checkpoint.exists() else 0
fail_at = max(options.crash_at, options.kill_at)
dist.barrier()
for step in range(start + 1, options.steps + 1):
    last = rank == world - 1
    if last and fail_at > 0 and step >= fail_at and (options.always or not failed.exists()):
        failed.touch()
        if options.kill_at > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if options.exit:
            print("row 17 has no audio", file=sys.stderr)
            sys.exit(options.exit)
        raise ValueError("loss is not finite")
    total = torch.ones(1)
    dist.all_reduce(total)
    assert int(total) == world
    if rank == 0:
        print(f"step {step}/{options.steps} {step / options.steps:.1%} | loss {1 / step:.3f} | eta 0:00", flush=True)
        checkpoint.write_text(str(step))
    dist.barrier()
while options.hang:
    time.sleep(0.1)
dist.destroy_process_group()
print(f"rank {rank} of {world} done from step {start}", flush=True)
