"""The cluster launcher: a job becomes a Kubeflow TrainJob and is followed to its end.

    restarts = launch_trainjob(job, cluster, Launch(run="demo-1"), say=print)

The JobSet under the TrainJob restarts all nodes together; this process only creates, watches and, when it is told to
stop, deletes. It may be lost at any time: the next one with the same run and step takes the TrainJob over.
"""

import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from af_pipelines import clock
from af_pipelines.cluster import ORPHAN, ClusterConfig
from af_pipelines.follow import PodLogs, blocked, is_queued, restarts_of, show_status
from af_pipelines.kube import JOBSET_LABEL, ClusterError, Kube, Object
from af_pipelines.manifest import ATTEMPT, HEARTBEAT, PROGRESS, RUN, SPEC, STEP, WATCHER, now_text, trainjob_manifest
from af_pipelines.shapes import moment
from megatron_af.entry import Cancelled, cancellable
from megatron_af.pipeline.job import Job, StepFailed
from megatron_af.pipeline.logs import read_progress
from megatron_af.pipeline.records import Launch

GIVE_UP_REASON = "FailJobSet"
"""Start of JobSet's reason when its failure policy matched an exit code that no restart mends."""
DELETE_SECONDS = 420.0
"""A pod that is asked to end has 300 s for its checkpoint (runtime.yaml)."""
POLL_SECONDS = 5.0
HOPELESS_SECONDS = 120.0
"""A registry may fail once; for longer than this an image that cannot be pulled is an error."""
HEARTBEAT_SECONDS = 60.0
LOST_WATCHER = timedelta(minutes=10)


def launch_trainjob(
    job: Job, cluster: ClusterConfig, run: Launch, say: Callable[[str], None], *, kube: Kube | None = None
) -> int:
    """Run a job as a TrainJob and return how often it was restarted.

    Raises `StepFailed` with the last error's text, and `Cancelled` on SIGTERM; the TrainJob is deleted then, and
    whenever it could not run at all. A failed one stays for `kubectl describe` until the step is tried again.
    """
    kube = kube or Kube.connect(cluster)
    kube.say = lambda line: say(f"[{job.name}] {line}")
    body = trainjob_manifest(job, cluster, run)
    watch = _Watch(kube, job, cluster, body["metadata"]["name"], say)
    with cancellable():
        try:
            _create_or_adopt(kube, body, run, say)
            return watch.to_the_end()
        except Cancelled:
            watch.stop()
            raise


def check(jobs: Sequence[Job], cluster: ClusterConfig, run: Launch, *, kube: Kube | None = None) -> None:
    """Ask the cluster whether it would take these jobs, before hours of preparation lead up to them.

    Finds a missing namespace, CRD, runtime or queue, an account without rights and an expired login; not a full quota.
    That the image can be pulled is shown by the step that asks: it runs from it.
    """
    kube = kube or Kube.connect(cluster)
    if jobs and cluster.queue and not kube.has_queue(cluster.queue):
        raise StepFailed(
            f"namespace {cluster.namespace} has no queue {cluster.queue!r} of Kueue (v1beta2), and a job that names it "
            "waits for ever: apply kubeflow/manifests/components/kueue, correct `queue` in the cluster file, or "
            "leave it empty",
            give_up=True,
        )
    for job in jobs:
        try:
            kube.create(trainjob_manifest(job, cluster, run), dry_run=True)
        except ClusterError as error:
            if error.status != 409:
                raise


def delete_run(cluster: ClusterConfig, run: str) -> None:
    """Delete every TrainJob of a run that has not ended: nothing of it may outlive its pipeline."""
    kube = Kube.connect(cluster)
    for found in kube.jobs(f"{RUN}={run}"):
        if ended(found) is None:
            kube.delete(found["metadata"]["name"])


def is_watched(found: Object, *, within: timedelta = ORPHAN, now: datetime | None = None) -> bool:
    """Whether a process watches a job that lives, by its last heartbeat."""
    return (now or datetime.now(UTC)) - last_sign(found) <= within


def last_sign(found: Object) -> datetime:
    """When a process last said that it watches the job, or made it; the beginning of time where neither is known."""
    metadata = found["metadata"]
    return max(moment(metadata.get("annotations", {}).get(HEARTBEAT)), moment(metadata.get("creationTimestamp")))


def ended(found: Object) -> Object | None:
    """The condition that ended a TrainJob: of type Complete or Failed, or None while it lives."""
    for condition in found.get("status", {}).get("conditions", []):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return dict(condition)
    return None


def _create_or_adopt(kube: Kube, body: Object, run: Launch, say: Callable[[str], None]) -> None:
    """Create the TrainJob, unless a former process of this step did: then go on with it, or replace it."""
    name, step = body["metadata"]["name"], body["metadata"]["labels"][STEP]
    while True:
        try:
            kube.create(body)
        except ClusterError as error:
            if error.status != 409:
                raise
        else:
            say(f"[{step}] created TrainJob {name} in namespace {kube.namespace}")
            return
        found = kube.get(name)
        if found is None:  # it went between the two calls
            continue
        metadata, condition = found["metadata"], ended(found)
        annotations, owner = metadata.get("annotations", {}), metadata.get("labels", {}).get(RUN, "")
        same = annotations.get(SPEC) == body["metadata"]["annotations"][SPEC]
        if metadata.get("deletionTimestamp"):
            say(f"[{step}] TrainJob {name} of an earlier try is still being deleted; waiting")
        elif owner != run.run and condition is None and is_watched(found):
            raise StepFailed(
                f"{step} is being trained by run {owner} (TrainJob {name}), and two jobs must not write one folder: "
                "wait for it, cancel it with `af-pipelines cancel`, or give this run another `name`",
                give_up=True,
            )
        elif owner == run.run and same and (condition is None or condition["type"] == "Complete"):
            say(f"[{step}] goes on with TrainJob {name}, which an earlier try of this step created")
            return
        elif owner == run.run and same and _gave_up(condition) and annotations.get(ATTEMPT) == str(run.attempt):
            return  # the watch reports its failure again instead of repeating it
        else:
            why = f"of run {owner}" if owner != run.run else "made from other settings" if not same else ""
            say(f"[{step}] replacing TrainJob {name} ({why or _describe(condition)})")
        kube.delete(name)  # once more where it is being deleted: in the background, whatever it was before
        _wait_until_gone(kube, name)


def _wait_until_gone(kube: Kube, name: str) -> None:
    """Until neither the job nor a pod of it is left: old and new pods would write the same files."""
    until = clock.now() + DELETE_SECONDS
    while (job := kube.get(name)) is not None or kube.pods(name):
        if clock.now() > until:
            see = f"trainjob {name}" if job is not None else f"pods -l {JOBSET_LABEL}={name}"
            raise StepFailed(
                f"TrainJob {name} or a pod of it is still there {DELETE_SECONDS:.0f} s after its deletion: a finalizer "
                f"or a lost node holds it; see `kubectl describe {see} -n {kube.namespace}`"
            )
        clock.sleep(POLL_SECONDS)


class _Watch:
    """Follows one TrainJob: passes its logs on, tells why it waits, and says how it ended."""

    def __init__(self, kube: Kube, job: Job, cluster: ClusterConfig, name: str, say: Callable[[str], None]) -> None:
        self.kube, self.job, self.cluster, self.name, self.say = kube, job, cluster, name, say
        self.logs = PodLogs(kube, job, self._pass_on)
        self.progress = ""
        self.restarts = 0
        self.watcher = uuid.uuid4().hex
        self.last_status = ""
        self.last_heartbeat = float("-inf")
        self.blocked_since: float | None = None

    def to_the_end(self) -> int:
        """Restarts of a job that completed; `StepFailed` otherwise."""
        pods: list[Any] = []
        while True:
            found = self.kube.get(self.name)
            if found is None:
                raise StepFailed(f"{self.job.name}: TrainJob {self.name} was deleted by someone else")
            self._beat(found)
            there = self.kube.pods(self.name)
            pods = there or pods  # those that ended still say why, when they have gone
            self._notice_restart(pods)
            self.logs.read(pods)
            condition = ended(found)
            if condition and condition["type"] == "Complete":
                return self.restarts
            if condition:
                words = self.logs.last_words(pods)
                raise StepFailed(f"{self.job.name}: {_describe(condition)}: {words}", give_up=_gave_up(condition))
            reason = "" if is_queued(found) else blocked(self.kube, found, self.job, there)
            self._show(show_status(found, there) + (f"; {reason}" if reason else ""))
            self._end_if_blocked(reason)
            clock.sleep(POLL_SECONDS)

    def _pass_on(self, line: str) -> None:
        if progress := read_progress(line):
            self.progress = str(progress)
        self.say(line)

    def _notice_restart(self, pods: list[Any]) -> None:
        restarts = restarts_of(pods)
        if restarts > self.restarts:
            self.say(f"[{self.job.name}] restart {restarts}: {self.logs.last_words([])}")
            self.restarts = restarts
            self.logs.start_over()

    def _show(self, status: str) -> None:
        if status != self.last_status:
            self.say(f"[{self.job.name}] {status}")
            self.last_status = status

    def _end_if_blocked(self, reason: str) -> None:
        """Delete and fail a job that cannot start: it would hold its place, and its nodes, for nothing."""
        now = clock.now()
        if not reason:
            self.blocked_since = None
            return
        if self.blocked_since is None:
            self.blocked_since = now
        hopeless = reason.startswith(("image", "container"))
        patience = HOPELESS_SECONDS if hopeless else self.cluster.pending_minutes * 60
        if now - self.blocked_since > patience:
            self.kube.delete(self.name)
            message = f"{self.job.name}: could not start: {reason}. TrainJob {self.name} is deleted"
            raise StepFailed(message, give_up=True)

    def _beat(self, found: Object) -> None:
        """Tell the reaper, and other processes of this step, that this one watches the job, and how far that is."""
        begun = self.last_heartbeat > float("-inf")
        if clock.now() - self.last_heartbeat < HEARTBEAT_SECONDS or (begun and self._is_taken(found)):
            return
        known = {PROGRESS: self.progress} if self.progress else {}
        if self.kube.annotate(self.name, {HEARTBEAT: now_text(), WATCHER: self.watcher, **known}):
            self.last_heartbeat = clock.now()

    def _is_taken(self, found: Object) -> bool:
        """Whether another process of this step watches the job, too: the later one is its owner."""
        watcher = found["metadata"].get("annotations", {}).get(WATCHER, "")
        return watcher not in ("", self.watcher) and is_watched(found, within=LOST_WATCHER)

    def stop(self) -> None:
        """Delete the job, unless another process of this step has taken it over meanwhile."""
        found = self.kube.get(self.name)
        if found is None:
            return
        if self._is_taken(found):
            self.say(f"[{self.job.name}] stopping; TrainJob {self.name} goes on under another process of this step")
            return
        self.say(f"[{self.job.name}] stopping: deleting TrainJob {self.name}")
        self.kube.delete(self.name)


def _gave_up(condition: Object | None) -> bool:
    return condition is not None and condition.get("reason", "").startswith((GIVE_UP_REASON, "DeadlineExceeded"))


def _describe(condition: Object | None) -> str:
    if condition is None:
        return "still running"
    return f"{condition['type']} {condition.get('reason', '')}: {condition.get('message', '')}".strip()
