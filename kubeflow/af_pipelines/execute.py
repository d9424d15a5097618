"""The steps of a pipeline where there is Kubernetes: what kfp's tasks call, and where the processes run.

    metrics = run_step("align", Arguments(config=…, cluster=…, launch=Launch(run="demo-1")), launcher="auto")
    finish(Arguments(…), state="SUCCEEDED")        # the exit handler

What a step does is the same everywhere (`megatron_af.pipeline.executor`).
"""

import dataclasses
import os
from collections.abc import Callable, Sequence

from af_pipelines.cluster import ClusterConfig
from megatron_af.config import Config
from megatron_af.config.as_json import from_json
from megatron_af.pipeline import executor
from megatron_af.pipeline.graph import StepSpec
from megatron_af.pipeline.job import Job
from megatron_af.pipeline.local import launch_local
from megatron_af.pipeline.records import Launch

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """What a pipeline hands to each of its steps."""

    config: str
    """The run's configuration as JSON."""
    cluster: str
    """The cluster file's values as JSON."""
    launch: Launch

    def read_config(self) -> Config:
        return from_json(Config, self.config)

    def read_cluster(self) -> ClusterConfig:
        return from_json(ClusterConfig, self.cluster)

    def place(self, launcher: str) -> "ClusterPlace":
        return ClusterPlace(self.read_config(), self.read_cluster(), self.launch, launcher)


def run_step(name: str, arguments: Arguments, launcher: str = "auto") -> dict[str, float]:
    """`executor.run_step`, where ``launcher`` says: ``local``, ``trainjob``, or ``auto``, which is training jobs where
    there is a cluster around this process."""
    return executor.run_step(name, arguments.read_config(), arguments.launch, arguments.place(launcher))


def finish(arguments: Arguments, state: str, launcher: str = "auto") -> str:
    """The exit handler: no training job outlives its pipeline; then, whatever came of that, `executor.finish`."""
    try:
        if on_cluster(launcher):
            from af_pipelines.trainjob import delete_run

            delete_run(arguments.read_cluster(), arguments.launch.run)
    finally:
        report = executor.finish(arguments.read_config(), arguments.launch, state)
    return report


class ClusterPlace:
    """Nodes on this machine, or a training job on the cluster around it, in the sizes of the cluster file."""

    def __init__(self, config: Config, cluster: ClusterConfig, launch: Launch, launcher: str) -> None:
        self._config, self._cluster, self._launch, self._launcher = config, cluster, launch, launcher

    def job(self, spec: StepSpec, name: str, argv: tuple[str, ...]) -> Job:
        placement = self._cluster.placement(spec.name, stage=spec.distributed)
        return Job(
            name=name,
            owner=f"{self._config.output}/{self._config.name}",
            step=spec.name,
            argv=argv,
            distributed=spec.distributed,
            nodes=placement.nodes if spec.distributed else 1,
            processes=placement.processes if spec.distributed else 1,
            env=self._cluster.env,
            max_restarts=self._cluster.max_restarts,
            deadline_seconds=self._cluster.deadline_hours * 3600,
        )

    def check(self, steps: Sequence[StepSpec]) -> None:
        if on_cluster(self._launcher):
            from af_pipelines.trainjob import check

            jobs = [self.job(spec, spec.name, ("tools/pretrain_af.py",)) for spec in steps if spec.distributed]
            check(jobs, self._cluster, self._launch)

    def run(self, job: Job, say: Say) -> int:
        """Only distributed jobs leave the step's own process for a training job."""
        if job.distributed and on_cluster(self._launcher):
            from af_pipelines.trainjob import launch_trainjob

            return launch_trainjob(job, self._cluster, self._launch, say)
        return launch_local(job, say)


def on_cluster(launcher: str) -> bool:
    return launcher == "trainjob" or (launcher == "auto" and "KUBERNETES_SERVICE_HOST" in os.environ)
