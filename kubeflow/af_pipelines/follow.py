"""What the cluster shows of a training job: its logs, how many nodes are up, why it waits.

logs = PodLogs(kube, job, say)
logs.read(pods)                     # says every new line
reason = blocked(kube, found, job, pods)
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any

from af_pipelines import clock
from af_pipelines.kube import CONTAINER, Kube, Object, node_of
from af_pipelines.shapes import number
from megatron_af.pipeline.job import Job, describe_exit
from megatron_af.pipeline.logs import last_error

RESTART_LABEL = "jobset.sigs.k8s.io/restart-attempt"
NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
GATED = "SchedulingGated"
"""Held by a queue, which may take as long as it takes; not a lack of room."""
NO_CONTAINER = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
FIRST_LINES = 1000
"""At most this much of a log that was already long when this process came to it."""


class LogReader:
    """Reads what pods printed since it last asked, as far as their nodes hand it out.

    A server that closes a followed stream loses lines or repeats them; asking again for the time since the last answer
    and dropping what was seen does neither.
    """

    def __init__(self, kube: Kube, container: str) -> None:
        self._kube, self._container = kube, container
        self._seen: dict[str, tuple[str, int, float | None]] = {}
        """Pod -> the latest stamp among its lines, how many had it, and when they were asked for."""

    def new_lines(self, pod: Any) -> list[str]:
        stamp, known, asked = self._seen.get(pod.metadata.uid, ("", 0, None))
        now = clock.now()
        # Five seconds more than passed here: the node's clock and ours tick differently.
        since = {"since_seconds": round(now - asked) + 5} if asked is not None else {"tail_lines": FIRST_LINES}
        lines = self._kube.log(pod.metadata.name, self._container, **since)
        if lines is None:  # next time, since the last answer
            return []
        latest, same, new, repeated = stamp, known, [], 0
        for line in lines:
            when, _, text = line.partition(" ")
            # CRI-O gives all lines of one write the same stamp; those of two streams may stand a little out of order.
            repeated += when == stamp
            if when > stamp or (when == stamp and repeated > known):
                new.append(text)
                same = same + 1 if when == latest else 1 if when > latest else same
                latest = max(latest, when)
        if latest:
            self._seen[pod.metadata.uid] = (latest, same, now)
        return new


class PodLogs:
    """Passes on the logs of a job's first and last node: the ranks that report are on these two."""

    def __init__(self, kube: Kube, job: Job, say: Callable[[str], None]) -> None:
        self._job, self._say = job, say
        self._reader = LogReader(kube, CONTAINER)
        self.lines: collections.deque[str] = collections.deque(maxlen=2000)
        """What this try of the job printed."""

    def read(self, pods: Sequence[Any]) -> None:
        for pod in pods:
            index = node_of(pod)
            if index not in (0, self._job.nodes - 1):
                continue
            label = f"{self._job.name} {index}" if self._job.nodes > 1 else self._job.name
            for line in self._reader.new_lines(pod):
                self.lines.append(line)
                self._say(f"[{label}] {line}")

    def start_over(self) -> None:
        """The job was restarted: what it printed before explains no later failure."""
        self.lines.clear()

    def last_words(self, pods: Sequence[Any]) -> str:
        """The error's text: of the pod that failed first, if its node was not one of those followed."""
        ends = [(node_of(pod), _terminated(pod)) for pod in pods]
        terminated = [(index, state) for index, state in ends if state and state.exit_code]
        terminated.sort(key=lambda entry: str(entry[1].finished_at))
        for index, state in terminated:
            if text := last_error((state.message or "").splitlines()):
                return f"node {index} {describe_exit(state.exit_code)}: {text}"
        text = last_error(self.lines)
        if text or not terminated:
            return text or "its pods left no error in their logs"
        index, state = terminated[0]
        return f"node {index} {describe_exit(state.exit_code)} ({state.reason})"


def restarts_of(pods: Sequence[Any]) -> int:
    """How often JobSet has started the nodes again."""
    return max((number((pod.metadata.labels or {}).get(RESTART_LABEL)) for pod in pods), default=0)


def is_queued(found: Object) -> bool:
    """Whether the job is suspended: Kueue holds it until its turn comes."""
    conditions = found.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Suspended" and condition["status"] == "True" for condition in conditions)


def show_status(found: Object, pods: Sequence[Any]) -> str:
    """One line: in the queue, starting, or how many nodes run; with the progress that Trainer itself knows of."""
    if is_queued(found):
        return "waiting in the queue to be admitted"
    ready = sum(pod.status.phase == "Running" for pod in pods)
    nodes = found.get("spec", {}).get("trainer", {}).get("numNodes", 1)
    status = f"{ready} of {nodes} nodes running"
    progress = found.get("status", {}).get("trainerStatus", {})
    if "progressPercentage" in progress:
        status += f", {progress['progressPercentage']}%"
    if "estimatedRemainingSeconds" in progress:
        status += f", {progress['estimatedRemainingSeconds']} s left"
    return status


def blocked(kube: Kube, found: Object, job: Job, pods: Sequence[Any]) -> str:
    """Why a job that may run does not; empty when all its nodes run or have ended.

    The text starts with ``image`` or ``container`` where waiting does not help.
    """
    for pod in pods:
        for status in pod.status.container_statuses or []:
            waiting = status.state.waiting if status.state else None
            if waiting and waiting.reason in NO_IMAGE:
                return (
                    f"image {status.image} cannot be pulled ({waiting.reason}: {waiting.message}): correct `image` "
                    "in the cluster file, push it, or name its registry's secret in `image_pull_secrets`"
                )
            if waiting and waiting.reason in NO_CONTAINER:
                return (
                    f"container cannot start ({waiting.reason}: {waiting.message}): see that the secrets and volumes "
                    "that the cluster file names exist in the namespace"
                )
        held = next((c for c in pod.status.conditions or [] if c.type == "PodScheduled" and c.status == "False"), None)
        if held is not None and held.reason != GATED:
            return f"no room for {pod.metadata.name}: {held.message}"
        if held is None and pod.status.phase == "Pending":
            # Its image is on the way, or a volume or network does not come: only events say what of these.
            warnings = kube.warnings(found, pod.metadata.name)
            return f"{pod.metadata.name} has not started" + (f": {warnings[-1]}" if warnings else "")
    if len(pods) < job.nodes:
        warnings = kube.warnings(found)
        if warnings:
            quota = "exceeded quota" in warnings[-1]
            advice = " (raise the namespace's quota, or ask for less in the cluster file)" if quota else ""
            return f"{len(pods)} of {job.nodes} pods exist: {warnings[-1]}{advice}"
        return f"{len(pods)} of {job.nodes} pods exist"
    return ""


def _terminated(pod: Any) -> Any:
    for status in pod.status.container_statuses or []:
        if status.state and status.state.terminated:
            return status.state.terminated
    return None
