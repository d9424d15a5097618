"""What the verbs of ``python -m af_pipelines`` do; see ``__main__`` for the command lines.

kfp and the Kubernetes client take seconds to import, so each verb imports what it needs.
"""

import argparse
import dataclasses
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from af_pipelines.cluster import ClusterConfig, Placement, check_cluster, check_placements, load_cluster
from af_pipelines.execute import Arguments
from megatron_af.config import Config, ConfigError
from megatron_af.config.as_json import from_json, to_json
from megatron_af.config.loading import load_config
from megatron_af.entry import Cancelled
from megatron_af.foreign import opened
from megatron_af.pipeline.driver import drive
from megatron_af.pipeline.graph import for_pipeline, pipeline_steps
from megatron_af.pipeline.job import Job, StepFailed
from megatron_af.pipeline.local import STOP_SECONDS
from megatron_af.pipeline.records import Launch, RunFolder, RunRecord, new_run
from megatron_af.pipeline.report import stamp, table

CLUSTER_KEY = "cluster."
SMOKE, SMOKE_SECONDS = "smoke", 1800.0
FOLLOW_SECONDS = 0.5
CANCEL_SECONDS = STOP_SECONDS + 120.0
"""A cancelled run writes a checkpoint and tells MLflow."""


def compile_(options: argparse.Namespace) -> int:
    """write the pipeline as a file that Kubeflow Pipelines reads"""
    from af_pipelines.pipelines import compile_pipeline

    arguments = _arguments(options, Launch(run="", pipeline=options.pipeline))
    compile_pipeline(arguments, Path(options.output))
    print(f"{options.output}: {len(pipeline_steps(arguments.read_config(), options.pipeline))} steps")
    return 0


def run(options: argparse.Namespace) -> int:
    """run the pipeline on this machine"""
    launch = Launch(run=new_run(), pipeline=options.pipeline)
    return _run_here(_arguments(options, launch))


def submit(options: argparse.Namespace) -> int:
    """start the pipeline on a Kubeflow cluster"""
    from af_pipelines.cluster_run import submit_run

    arguments = _arguments(options, Launch(run=new_run(), pipeline=options.pipeline))
    return submit_run(_folder(options), arguments)


def status(options: argparse.Namespace) -> int:
    """how the last run of this configuration stands"""
    folder, record = _last_run(options)
    if record.kubeflow_run:
        from af_pipelines.cluster_run import show_run

        return show_run(record)
    state = ("running here" if record.driver() else "ended here") if record.is_here else f"on {record.host}"
    print(f"{record.launch.pipeline} {record.launch.run}: {state}, started {stamp(record.started)}")
    records = {step.step: step for step in folder.steps()}
    print("\n".join(table(record.graph(), records, record.launch)))
    for step in records.values():
        if step.error:
            print(f"{step.step}: {step.error}")
    return 0


def logs(options: argparse.Namespace) -> int:
    """what the steps of the last run print"""
    folder, record = _last_run(options)
    if record.kubeflow_run:
        from af_pipelines.cluster_run import show_logs

        return show_logs(record, options.step, follow=options.follow)
    steps = record.graph()
    names = [spec.name for spec in steps if options.step in ("", spec.name)]
    if not names:
        raise StepFailed(f"no step {options.step!r}; there are {', '.join(spec.name for spec in steps)}")
    read = dict.fromkeys(names, 0)
    while True:
        alive = record.driver() is not None
        for name in names:
            path = folder.log(name)
            if path.exists():
                with opened(path) as file:
                    file.seek(read[name])
                    print(file.read().decode(errors="replace"), end="", flush=True)
                    read[name] = file.tell()
        if not options.follow or not alive:
            return 0
        time.sleep(FOLLOW_SECONDS)


def cancel(options: argparse.Namespace) -> int:
    """stop the last run and everything it started"""
    _, record = _last_run(options)
    if record.kubeflow_run:
        from af_pipelines.cluster_run import cancel_run

        return cancel_run(record)
    if not record.is_here:
        raise StepFailed(f"{record.launch.run} was started on {record.host}, not here: cancel it there")
    driver = record.driver()
    if driver is None:
        print(f"{record.launch.run} has ended already")
        return 0
    driver.send_signal(signal.SIGTERM)
    until = time.monotonic() + CANCEL_SECONDS
    while record.driver() is not None:  # psutil's own wait would also wait for whoever started it to notice
        if time.monotonic() > until:
            raise StepFailed(f"process {record.pid} has not stopped in {CANCEL_SECONDS:.0f} s; `kill -9` ends it")
        time.sleep(0.1)
    print(f"{record.launch.run} is cancelled")
    return 0


def resume(options: argparse.Namespace) -> int:
    """go on with the last run from its first step that is not done"""
    folder, record = _last_run(options)
    launch = dataclasses.replace(record.launch, attempt=record.launch.attempt + 1)
    cluster = record.cluster or to_json(_this_machine(record.read_config()))
    arguments = Arguments(config=record.config, cluster=cluster, launch=launch)
    if record.kubeflow_run:
        from af_pipelines.cluster_run import submit_run

        return submit_run(folder, arguments)
    return _run_here(arguments, record.steps)


def reap(options: argparse.Namespace) -> int:
    """delete training jobs that no pipeline watches any more"""
    from af_pipelines.cluster_run import reap_jobs

    return reap_jobs(load_cluster(options.cluster, options.overrides))


def serve(options: argparse.Namespace) -> int:
    """serve the champion of this configuration on a cluster, and every later one"""
    from af_pipelines.kube import Kube
    from af_pipelines.serving import serve

    overrides = [text for text in options.overrides if not text.startswith(CLUSTER_KEY)]
    config = load_config(options.config, overrides)
    print(serve(Kube.connect(_cluster(options)), config.registry.model or config.name))
    return 0


def unserve(options: argparse.Namespace) -> int:
    """end the server on a cluster"""
    from af_pipelines.kube import Kube
    from af_pipelines.serving import unserve

    print(unserve(Kube.connect(_cluster(options))))
    return 0


def roll_out(options: argparse.Namespace) -> int:
    """bring what a cluster serves to the champion, as it does itself every two minutes"""
    from af_pipelines.kube import Kube
    from af_pipelines.serving import roll_out

    print(roll_out(Kube.connect(_cluster(options))))
    return 0


def rollback(options: argparse.Namespace) -> int:
    """make the previous champion the champion again, and serve it"""
    from megatron_af.release.commands import rollback
    from megatron_af.tracking.runs import tracking_uri
    from megatron_af.tracking.store import in_words

    from mlflow.exceptions import MlflowException  # isort: skip  (after them, since they set its environment)

    overrides = [text for text in options.overrides if not text.startswith(CLUSTER_KEY)]
    config = load_config(options.config, overrides)
    try:
        good, bad = rollback(config, options.why)
    except MlflowException as error:
        may_not = error.error_code == "PERMISSION_DENIED"
        raise StepFailed(in_words(error, tracking_uri(config)), give_up=may_not) from error
    print(f"version {good} is the champion again, instead of {bad}", flush=True)
    return roll_out(options) if options.cluster else 0


def smoke(options: argparse.Namespace) -> int:
    """measure the network between two nodes of a cluster, as training uses it"""
    from af_pipelines.trainjob import launch_trainjob

    cluster = _cluster(options)
    job = Job(
        name=SMOKE,
        owner=cluster.namespace,
        argv=("tools/measure_network.py",),
        nodes=2,
        processes=cluster.placement(SMOKE, stage=True).processes,
        deadline_seconds=SMOKE_SECONDS,
    )
    launch_trainjob(job, cluster, Launch(run=new_run()), lambda line: print(line, flush=True))
    return 0


def _cluster(options: argparse.Namespace) -> ClusterConfig:
    changes = [text.removeprefix(CLUSTER_KEY) for text in options.overrides if text.startswith(CLUSTER_KEY)]
    return load_cluster(options.cluster, changes)


def _run_here(arguments: Arguments, names: Sequence[str] = ()) -> int:
    config, launch = arguments.read_config(), arguments.launch
    folder, place, state = RunFolder(config), arguments.place("local"), "failed"
    try:
        print(drive(config, launch, place, names=names, cluster=arguments.cluster))
        state = "succeeded"
    except Cancelled:
        state = "cancelled"
        raise
    finally:
        print(f"{launch.pipeline} {launch.run}: {state}; report: {folder.path / 'report.md'}")
    return 0


def _arguments(options: argparse.Namespace, launch: Launch) -> Arguments:
    """Configuration and cluster of a command line, checked against each other."""
    overrides = [text for text in options.overrides if not text.startswith(CLUSTER_KEY)]
    config = load_config(options.config, overrides)
    changes = [text.removeprefix(CLUSTER_KEY) for text in options.overrides if text.startswith(CLUSTER_KEY)]
    if options.cluster:
        cluster = load_cluster(options.cluster, changes)
        config = load_config(options.config, [*cluster.overrides, *overrides])
    else:
        cluster = from_json(ClusterConfig, to_json(_this_machine(config)), changes)
    problems = [*check_cluster(cluster), *check_placements(config, cluster)]
    if problems:
        raise ConfigError(f"{options.config} cannot run on {options.cluster or 'this machine'}", problems)
    return Arguments(config=to_json(for_pipeline(config)), cluster=to_json(cluster), launch=launch)


def _this_machine(config: Config) -> ClusterConfig:
    """Without a cluster file: the nodes and processes of ``launch``."""
    stages = Placement(nodes=config.launch.nodes, processes=config.launch.processes_per_node)
    return ClusterConfig(stages=stages, image="python", retries=0)


def _folder(options: argparse.Namespace) -> RunFolder:
    """Where this machine keeps what it knows of the run, whatever folder the cluster writes to."""
    overrides = [text for text in options.overrides if not text.startswith(CLUSTER_KEY)]
    return RunFolder(load_config(options.config, overrides))


def _last_run(options: argparse.Namespace) -> tuple[RunFolder, RunRecord]:
    folder = _folder(options)
    record = folder.run()
    if record is None:
        raise StepFailed(f"{options.config} was never run or submitted from here: there is no {folder.path}/run.json")
    return folder, record
