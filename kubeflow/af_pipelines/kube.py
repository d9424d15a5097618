"""The few Kubernetes calls that training jobs need, with patience for a busy API server and words for its refusals.

    kube = Kube.connect(cluster)
    kube.create(body); kube.get(name); kube.delete(name); kube.pods(name); kube.log(pod, …)

An answer that may pass (429, 5xx, no answer) is tried again for ``away_minutes``. Every other one becomes a
`ClusterError`, which names the cause and the next step.
"""

import contextlib
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.config import ConfigException

from af_pipelines.cluster import ClusterConfig
from af_pipelines.job import StepFailed

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
CONTAINER = "node"
"""Container of a training pod, by the contract of Trainer's runtimes."""
PASSING = (408, 429, 500, 502, 503, 504)
LONGEST_WAIT_SECONDS = 30.0
# The pods of a job have these labels from JobSet and from the Job controller.
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"

Object = dict[str, Any]


class ClusterError(StepFailed):
    """The cluster refused; the message says why and what to do. Trying again would not help."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message, give_up=True)
        self.status = status


class ClusterAway(StepFailed):
    """The API server did not answer for longer than a step waits; its training job goes on meanwhile."""


class Kube:
    """One namespace of one cluster."""

    def __init__(self, cluster: ClusterConfig, api: client.ApiClient, *, first_wait: float = 1.0) -> None:
        self.namespace = cluster.namespace
        self._cluster = cluster
        self._custom, self._core = client.CustomObjectsApi(api), client.CoreV1Api(api)
        self._first_wait = first_wait
        self._jobs = {"group": GROUP, "version": VERSION, "namespace": cluster.namespace, "plural": PLURAL}

    @classmethod
    def connect(cls, cluster: ClusterConfig) -> "Kube":
        """By the pod's own account inside a cluster, by the kubeconfig file's current context elsewhere."""
        settings = client.Configuration()
        try:
            if "KUBERNETES_SERVICE_HOST" in os.environ:
                config.load_incluster_config(client_configuration=settings)
            else:
                # The client itself looks at KUBECONFIG only once, when it is imported.
                config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=settings)
        except ConfigException as error:
            raise ClusterError(
                f"no Kubernetes cluster is configured ({' '.join(str(error).split())}): set KUBECONFIG or log in with "
                "your cluster's own command, then see that `kubectl get nodes` answers"
            ) from error
        settings.retries = False  # this class waits and tries again itself
        return cls(cluster, client.ApiClient(settings))

    def create(self, body: Object, *, dry_run: bool = False) -> None:
        """Raises `ClusterError` with status 409 where the job exists. A dry run passes all checks and makes nothing."""
        dry = {"dry_run": "All"} if dry_run else {}
        self._call(self._custom.create_namespaced_custom_object, body=body, **dry, **self._jobs)

    def get(self, name: str) -> Object | None:
        with _unless(404):
            return self._call(self._custom.get_namespaced_custom_object, name=name, **self._jobs)
        return None

    def delete(self, name: str) -> None:
        """Delete a job with everything it made; no error if it has gone already."""
        with _unless(404):
            self._call(
                self._custom.delete_namespaced_custom_object, name=name, propagation_policy="Foreground", **self._jobs
            )

    def annotate(self, name: str, annotations: dict[str, str]) -> None:
        body = {"metadata": {"annotations": annotations}}
        self._call(self._custom.patch_namespaced_custom_object, name=name, body=body, **self._jobs)

    def jobs(self, selector: str) -> list[Object]:
        answer = self._call(self._custom.list_namespaced_custom_object, label_selector=selector, **self._jobs)
        return list(answer["items"])

    def pods(self, job: str) -> list[Any]:
        """The job's pods, by node."""
        pods = self.select_pods(f"{JOBSET_LABEL}={job}")
        return sorted(pods, key=lambda pod: int((pod.metadata.labels or {}).get(INDEX_LABEL, 0)))

    def select_pods(self, selector: str) -> list[Any]:
        return list(self._call(self._core.list_namespaced_pod, self.namespace, label_selector=selector).items)

    def warnings(self, job: str) -> list[str]:
        """Texts of the warnings about a job's objects, the latest last: quota, admission, scheduling, images."""
        events = self._call(self._core.list_namespaced_event, self.namespace, field_selector="type=Warning").items
        mine = [event for event in events if _belongs(event.involved_object.name, job)]
        mine.sort(key=lambda event: str(event.last_timestamp or event.event_time or event.metadata.creation_timestamp))
        return [f"{event.reason}: {event.message}" for event in mine]

    def log(
        self, pod: str, container: str, *, since_seconds: int | None = None, tail_lines: int | None = None
    ) -> list[str]:
        """The lines of a pod's container, each behind its time stamp; none while it has not started."""
        with _unless(400, 404):
            text: str = self._call(
                self._core.read_namespaced_pod_log,
                pod,
                self.namespace,
                container=container,
                timestamps=True,
                **({"since_seconds": since_seconds} if since_seconds else {}),
                **({"tail_lines": tail_lines} if tail_lines else {}),
            )
            return text.splitlines()
        return []

    def _call(self, request: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Make a request, again while its failure may pass; anything else is a `ClusterError`."""
        wait, until = self._first_wait, time.monotonic() + self._cluster.away_minutes * 60
        while True:
            try:
                return request(*arguments, _request_timeout=(10, 60), **named)
            except client.ApiException as error:
                if error.status not in PASSING:
                    raise ClusterError(explain(error, self._cluster), error.status) from error
                reason = f"{error.status} {error.reason}"
                asked = float((error.headers or {}).get("Retry-After", 0) or 0)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                reason, asked = " ".join(str(error).split()), 0.0
            if time.monotonic() + wait > until:
                raise ClusterAway(
                    f"the Kubernetes API server has not answered for {self._cluster.away_minutes:g} minutes "
                    f"({reason}): check the network, the VPN and the kubeconfig's server; the training job goes on, "
                    "and a retry or `af-pipelines resume` finds it again"
                )
            # Many steps wait for the same server: spread over time, they do not all come back at once.
            time.sleep(max(asked, wait * random.uniform(0.7, 1.3)))
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)


def explain(error: client.ApiException, cluster: ClusterConfig) -> str:
    """Cause and next step for a refusal of the API server."""
    message = _message(error)
    lower = message.lower()
    where = f"in namespace {cluster.namespace}"
    if error.status == 401:
        return f"the cluster refuses the login, its token has expired or is wrong ({message}): log in again"
    if "clustertrainingruntime must be created" in lower or "unsupported runtime" in lower:
        return (
            f"the cluster has no training runtime {cluster.runtime!r} ({message}): apply kubeflow/manifests, or name "
            "one of `kubectl get clustertrainingruntimes` as `runtime` in the cluster file"
        )
    if "exceeded quota" in lower:
        return f"the quota {where} is used up ({message}): free or raise it, or ask for less in the cluster file"
    if error.status == 403:
        return (
            f"the account is not allowed to do this ({message}): apply kubeflow/manifests/base/namespaced/rbac.yaml "
            f"{where}, or use the service account {cluster.service_account!r}"
        )
    if error.status == 404 and "namespace" in lower:
        return f"there is no namespace {cluster.namespace!r} ({message}): create it, or correct `namespace`"
    if error.status == 404:
        return (
            f"the cluster does not know TrainJobs ({message}): install Kubeflow Trainer 2.2 or later (docs/kubeflow.md)"
        )
    return f"the cluster answers {error.status} {error.reason}: {message}"


def _message(error: client.ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return " ".join(str(error.body or error.reason).split())


def _belongs(name: str, job: str) -> bool:
    """Whether an object's name is the job's or that of one of its children."""
    return name == job or name.startswith(f"{job}-{CONTAINER}-")


@contextlib.contextmanager
def _unless(*statuses: int) -> Iterator[None]:
    try:
        yield
    except ClusterError as error:
        if error.status not in statuses:
            raise
