"""A pipeline on this machine: its steps one after another, in this process, until one fails.

    drive(config, Launch(run=new_run()), ThisMachine(config))                        # everything
    drive(config, Launch(run=new_run(), pipeline="stages"), place, names=["align"])  # one step

`tools/run_curriculum.py`, the demo and ``af-pipelines run`` are this with other steps. On a cluster Kubeflow Pipelines
takes its place and starts each step in a pod of its own.
"""

import os
from collections.abc import Sequence

from megatron_af.config import Config
from megatron_af.config.as_json import to_json
from megatron_af.entry import Cancelled, cancellable
from megatron_af.pipeline.executor import TRAINING, Place, Say, finish, run_step, show
from megatron_af.pipeline.job import StepFailed
from megatron_af.pipeline.records import Launch, RunFolder, RunRecord
from megatron_af.tracking.runs import start_curriculum_run


def drive(
    config: Config, launch: Launch, place: Place, *, names: Sequence[str] = (), cluster: str = "", say: Say = show
) -> str:
    """Run a pipeline's steps, or those of ``names``, to their end and return the report; it is written in any case.

    Args:
        cluster: what `RunRecord.cluster` keeps for a resume.

    Raises what `run_step` raises, and `StepFailed` where another process drives this run.
    """
    folder = RunFolder(config)
    last = folder.run()
    if last and (other := last.driver()):
        raise StepFailed(f"{last.launch.run} is still running as process {other.pid}: wait for it, or cancel it")
    record = RunRecord(launch=launch, config=to_json(config), steps=tuple(names), cluster=cluster, pid=os.getpid())
    folder.write_run(record)
    state, run = "FAILED", None
    with cancellable():
        try:
            if launch.pipeline in TRAINING and config.tracking.enabled:
                run = start_curriculum_run(config)
            for spec in record.graph():
                run_step(spec.name, config, launch, place, say)
            state = "SUCCEEDED"
        except Cancelled:
            state = "CANCELLED"
            raise
        finally:
            report = finish(config, launch, state, run)
    return report
