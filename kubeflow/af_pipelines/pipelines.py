"""From the configuration to a Kubeflow pipeline: one compiled file for a laptop and for a cluster.

    compile_pipeline(arguments, Path("af2_3b.yaml"))

Each step is the same thin component; it only calls `execute.run_step`, whose launcher decides where the work is done.
The compiled file holds the configuration and the names of secrets, never their values. Compiling the same input gives
the same bytes.
"""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kfp import compiler, dsl
from kfp import kubernetes as platform
from kfp.dsl.utils import make_name_unique_by_adding_index, maybe_rename_for_k8s

from af_pipelines.cluster import ClusterConfig, Placement
from af_pipelines.execute import Arguments
from megatron_af.pipeline.graph import StepSpec, pipeline_steps

WATCHER = Placement(cpu="500m", memory="2Gi")
"""A step whose work a training job does only watches it."""
EXIT_STEP = "finish"
BACKOFF = {"backoff_duration": "5s", "backoff_factor": 2.0, "backoff_max_duration": "60s"}


def step(
    step: str, config: str, cluster: str, run: str, job: str, attempt: int, pipeline: str, launcher: str,
    metrics: dsl.Output[dsl.Metrics],
) -> None:  # fmt: skip
    """Run one step; what fails it stands in the log's last lines."""
    import sys

    from af_pipelines.execute import Arguments, run_step
    from megatron_af.entry import Cancelled
    from megatron_af.pipeline.job import StepFailed
    from megatron_af.pipeline.records import Launch

    launch = Launch(run=run or job, attempt=attempt, pipeline=pipeline)
    try:
        shown = run_step(step, Arguments(config=config, cluster=cluster, launch=launch), launcher)
    except StepFailed:
        sys.exit(1)
    except Cancelled as stop:
        sys.exit(stop.exit_code)
    for name, value in shown.items():
        metrics.log_metric(name, value)


def finish(
    config: str, cluster: str, run: str, job: str, attempt: int, pipeline: str, launcher: str,
    status: dsl.PipelineTaskFinalStatus,
) -> None:  # fmt: skip
    """The exit handler, whatever happened before."""
    from af_pipelines.execute import Arguments, finish
    from megatron_af.pipeline.records import Launch

    launch = Launch(run=run or job, attempt=attempt, pipeline=pipeline)
    print(finish(Arguments(config=config, cluster=cluster, launch=launch), status.state, launcher))


def compile_pipeline(arguments: Arguments, path: Path) -> None:
    """Write the pipeline of ``arguments`` as KFP's intermediate representation.

    Its parameters default to ``arguments``, so that the file can also be uploaded and started by hand.
    """
    config, cluster, launch = arguments.read_config(), arguments.read_cluster(), arguments.launch
    steps = pipeline_steps(config, launch.pipeline)

    def graph(
        config: str = arguments.config,
        cluster: str = arguments.cluster,
        run: str = "",
        attempt: int = 1,
        launcher: str = "auto",
    ) -> None:
        shared: dict[str, Any] = {
            "config": config,
            "cluster": cluster,
            "run": run,
            "job": dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            "attempt": attempt,
            "pipeline": launch.pipeline,
            "launcher": launcher,
        }
        last = _place(_component(finish, EXIT_STEP, settings.image)(**shared), settings, WATCHER)
        with dsl.ExitHandler(last, name=launch.pipeline):
            tasks: dict[str, Any] = {}
            for spec in steps:
                task = _component(step, spec.name, settings.image)(step=spec.name, **shared)
                task.after(*(tasks[name] for name in spec.after))
                tasks[spec.name] = _place(task, settings, _resources(spec, settings))
                if settings.retries:
                    task.set_retry(settings.retries, **BACKOFF)

    settings = cluster
    name = re.sub(r"[^a-z0-9]+", "-", f"{launch.pipeline}-{config.name}".lower()).strip("-")
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(dsl.pipeline(graph, name=name), str(path))


def task_names(steps: Sequence[StepSpec]) -> dict[str, str]:
    """Step -> what Kubeflow calls its task: in small letters with hyphens, and numbered where that is taken already."""
    taken = [EXIT_STEP]
    for spec in steps:
        taken.append(make_name_unique_by_adding_index(maybe_rename_for_k8s(spec.name), taken, "-"))
    return dict(zip((spec.name for spec in steps), taken[1:], strict=True))


def _component(function: Any, name: str, image: str) -> Any:
    """A component under the step's own name, by which tasks and pods are then called."""
    component = copy.deepcopy(dsl.component(function, base_image=image, install_kfp_package=False))
    component.component_spec.name = name
    return component


def _resources(spec: StepSpec, cluster: ClusterConfig) -> Placement:
    return WATCHER if spec.distributed else cluster.placement(spec.name, stage=False)


def _place(task: Any, cluster: ClusterConfig, placement: Placement) -> Any:
    """Give a task its volumes, variables and resources; on this machine they mean nothing."""
    task.set_caching_options(False)  # a cached step would skip its side effects, and every step has some
    for name, value in sorted(cluster.env.items()):
        task.set_env_variable(name, value)
    for variable, source in sorted(cluster.secrets.items()):
        platform.use_secret_as_env(task, secret_name=source.secret, secret_key_to_env={source.key: variable})
    for volume in cluster.volumes:
        platform.mount_pvc(task, pvc_name=volume.claim, mount_path=volume.mount)
    if cluster.image_pull_secrets:
        platform.set_image_pull_secrets(task, list(cluster.image_pull_secrets))
    if placement.cpu:
        task.set_cpu_request(placement.cpu).set_cpu_limit(placement.cpu)
    if placement.memory:
        task.set_memory_request(placement.memory).set_memory_limit(placement.memory)
    for device, count in placement.devices.items():
        task.set_accelerator_type(device).set_accelerator_limit(count)
    for label, value in placement.node_selector.items():
        platform.add_node_selector(task, label, value)
    for key in placement.tolerate:
        platform.add_toleration(task, key=key, operator="Exists")
    return task
