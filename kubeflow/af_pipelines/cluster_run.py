"""A run on a cluster, seen from the machine that submitted it: the graph by Kubeflow Pipelines, the jobs by Kubernetes.

    submit_run(folder, arguments); show_run(record); show_logs(record, "align", follow=True); cancel_run(record)

The functions are the cluster's side of the verbs in `commands`.
"""

import sys
from datetime import UTC, datetime, timedelta

from af_pipelines import clock
from af_pipelines.cluster import ORPHAN, ClusterConfig, check_on_kubernetes
from af_pipelines.endpoint import ENDED, IMPLEMENTATION, Endpoint
from af_pipelines.execute import Arguments
from af_pipelines.follow import LogReader, show_status
from af_pipelines.kube import ClusterError, Kube, Object
from af_pipelines.manifest import MANAGED_BY, PROGRESS, RUN, STEP
from af_pipelines.pipelines import compile_pipeline, task_names
from af_pipelines.shapes import BEGINNING, moment
from af_pipelines.trainjob import delete_run, ended, last_sign
from megatron_af.config import ConfigError
from megatron_af.config.as_json import from_json
from megatron_af.entry import AGAIN
from megatron_af.pipeline.job import StepFailed
from megatron_af.pipeline.records import RunFolder, RunRecord
from megatron_af.tracking.store import file_lock

POLL_SECONDS = 3.0
KEPT = timedelta(days=7)
"""A training job that has ended stays this long for `kubectl describe`; TrainJobs have no life time of their own."""


def submit_run(folder: RunFolder, arguments: Arguments) -> int:
    """Hand a run to Kubeflow.

    Raises `ConfigError` for what only this cluster cannot run, and `StepFailed` while the last run of this
    configuration has not ended.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.path / "lock"):
        return _submit_alone(folder, arguments)


def _submit_alone(folder: RunFolder, arguments: Arguments) -> int:
    config, cluster, launch = arguments.read_config(), arguments.read_cluster(), arguments.launch
    if problems := check_on_kubernetes(config, cluster):
        raise ConfigError(f"{config.name} cannot run on this cluster", problems)
    endpoint = Endpoint.connect(cluster)
    _refuse_a_second_run(folder, endpoint)
    pipeline = folder.path / "pipeline.yaml"
    compile_pipeline(arguments, pipeline)
    name = f"{config.name} {launch.pipeline} {launch.run}"
    if launch.attempt > 1:
        name += f" attempt {launch.attempt}"
    parameters = {"config": arguments.config, "cluster": arguments.cluster}
    run_id = endpoint.submit(pipeline, name, parameters | {"run": launch.run, "attempt": launch.attempt})
    folder.write_run(
        RunRecord(
            launch=launch,
            config=arguments.config,
            cluster=arguments.cluster,
            kubeflow_run=run_id,
        )
    )
    print(f"submitted {launch.run} to {endpoint.host}, namespace {cluster.namespace}: {endpoint.link(run_id)}")
    print("follow it with `af-pipelines status` and `af-pipelines logs --follow`")
    return 0


def _refuse_a_second_run(folder: RunFolder, endpoint: Endpoint) -> None:
    """Two runs would write the same folders, and ``cancel`` would know of one of them only."""
    last = folder.run()
    if last is None or not last.kubeflow_run:
        return
    state = endpoint.state_if_known(last.kubeflow_run)
    if state is not None and state not in ENDED:
        raise StepFailed(
            f"{last.launch.run} of this configuration is {state.lower()} at {endpoint.link(last.kubeflow_run)}: wait "
            "for it, stop it with `af-pipelines cancel`, or give this run another `name`"
        )


def show_run(record: RunRecord) -> int:
    cluster = from_json(ClusterConfig, record.cluster)
    endpoint = Endpoint.connect(cluster)
    tasks = endpoint.tasks(record.kubeflow_run)
    print(f"{record.launch.pipeline} {record.launch.run}: {endpoint.state(record.kubeflow_run).lower()} "
          f"at {endpoint.link(record.kubeflow_run)}")  # fmt: skip
    names = task_names(record.graph())
    for spec in record.graph():
        task = tasks.get(names[spec.name])
        state = str(task.state or "pending").lower() if task else "waiting"
        error = f": {task.error.message}" if task and task.error and task.error.message else ""
        print(f"{spec.name:20} {state}{error}")
    try:
        kube = Kube.connect(cluster)
        for job in kube.jobs(f"{RUN}={record.launch.run}"):
            print(_job_line(job, kube))
    except StepFailed as error:
        print(f"training jobs cannot be shown: {error}")
    return 0


def show_logs(record: RunRecord, step: str, *, follow: bool) -> int:
    """Lines of the pods that run the steps; those of training steps hold what their jobs' nodes print."""
    cluster = from_json(ClusterConfig, record.cluster)
    kube, endpoint = Kube.connect(cluster), Endpoint.connect(cluster)
    reader = LogReader(kube, "main")
    while True:
        state = endpoint.state(record.kubeflow_run)
        pods = kube.select_pods(f"pipeline/runid={record.kubeflow_run}")
        pods = [pod for pod in pods if IMPLEMENTATION in pod.metadata.name]
        if not pods and not follow:
            folder = RunFolder(record.read_config()).path
            print(f"no pod of this run is left; its logs lie in {folder}/logs on the cluster's volume")
        for pod in sorted(pods, key=lambda pod: str(pod.metadata.creation_timestamp)):
            for line in reader.new_lines(pod):
                if line.startswith((f"[{step}]", f"[{step} ") if step else "["):
                    print(line, flush=True)
        if not follow or state in ENDED:
            return 0
        clock.sleep(POLL_SECONDS)


def cancel_run(record: RunRecord) -> int:
    cluster = from_json(ClusterConfig, record.cluster)
    endpoint = Endpoint.connect(cluster)
    if endpoint.state_if_known(record.kubeflow_run) in (None, *ENDED):  # Kubeflow refuses to end it once more
        print(f"{record.launch.run} has ended already")
    else:
        endpoint.terminate(record.kubeflow_run)
        print(f"{record.launch.run} is being terminated; its steps delete their training jobs")
    try:
        delete_run(cluster, record.launch.run)
    except StepFailed as error:
        print(f"its training jobs cannot be deleted from here as well: {error}")
    return 0


def reap_jobs(cluster: ClusterConfig, now: datetime | None = None) -> int:
    """Delete orphans, and training jobs that ended long ago; 1 where the cluster refused one of them."""
    refused = 0
    kube, now = Kube.connect(cluster), now or datetime.now(UTC)
    for job in kube.jobs(",".join(f"{name}={value}" for name, value in MANAGED_BY.items())):
        name, condition = job["metadata"]["name"], ended(job)
        if condition:
            since = max(moment(condition.get("lastTransitionTime")), moment(job["metadata"].get("creationTimestamp")))
            limit, why = KEPT, f"ended ({condition['type']})"
        else:
            since, limit, why = last_sign(job), ORPHAN, "lost its pipeline"
        age = now - since
        if since > BEGINNING and age > limit:
            try:
                kube.delete(name)
            except ClusterError as error:  # of this job, as a webhook or a finalizer may: the others hold nodes, too
                refused += 1
                print(f"cannot delete {name}, which {why}: {error}", file=sys.stderr)
                continue
            print(f"deleted {name}: {why} {age.total_seconds() / 3600:.1f} h ago")
    return AGAIN if refused else 0


def _job_line(job: Object, kube: Kube) -> str:
    name, condition = job["metadata"]["name"], ended(job)
    step = job["metadata"].get("labels", {}).get(STEP, "")
    if condition:
        return f"{step:20} TrainJob {name}: {condition['type'].lower()} {condition.get('message', '')}"
    status = show_status(job, kube.pods(name))
    progress = job["metadata"].get("annotations", {}).get(PROGRESS, "")  # Trainer's own is behind a feature gate
    return f"{step:20} TrainJob {name}: {status}" + (f"; {progress}" if progress else "")
