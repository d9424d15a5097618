"""The few Kubernetes calls that training jobs need, with patience for a busy API server and words for its refusals.

    kube = Kube.connect(cluster)
    kube.create(body); kube.get(name); kube.delete(name); kube.pods(name); kube.log(pod, …)

An answer that may pass (429, 5xx, no answer, a login that expired) is tried again for a while, and what is waited for
is said once. Every other one becomes a `ClusterError`, which names the cause and the next step. Logs and heartbeats
are worth one try each: a kubelet or a webhook that is down says nothing of the job.
"""

import contextlib
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.config import ConfigException

from af_pipelines import clock
from af_pipelines.cluster import ClusterConfig
from af_pipelines.refusals import explain, message_of
from af_pipelines.shapes import JOB, JOBS, SERVICE, ShapeError, checked, moment, number
from megatron_af.pipeline.job import StepFailed
from megatron_af.retry_after import retry_after

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
KSERVE = {"group": "serving.kserve.io", "version": "v1beta1", "plural": "inferenceservices"}
CONTAINER = "node"
"""Container of a training pod, by the contract of Trainer's runtimes."""
PASSING = (408, 429, 500, 502, 503, 504)
LOGIN_MINUTES = 5.0
"""A token that expired is replaced in its file within minutes; the client reads it again with each request."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 30.0
ONE_TRY_SECONDS = (5, 20)
"""To connect, and to answer."""
# The pods of a job have these labels from JobSet and from the Job controller.
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"

# The client's reader of times says by itself that it does not know a zone, and reads the time without one.
warnings.filterwarnings("ignore", message="tzname .* identified but not understood")

Object = dict[str, Any]
_ODD = (ShapeError, ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What is raised of an answer that is none of Kubernetes: our own, and what the client stumbles over."""


class ClusterError(StepFailed):
    """The cluster refused; the message says why and what to do. Trying again would not help."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message, give_up=True)
        self.status = status


class ClusterAway(StepFailed):
    """The API server did not answer for longer than a step waits."""

    goes_on = True


class Kube:
    """One namespace of one cluster."""

    def __init__(self, cluster: ClusterConfig, api: client.ApiClient) -> None:
        self.namespace = cluster.namespace
        self._cluster = cluster
        self._custom, self._core = client.CustomObjectsApi(api), client.CoreV1Api(api)
        self._apps = client.AppsV1Api(api)
        self.say: Callable[[str], None] = lambda line: None
        """Told once that an answer is waited for, and what the API server warns of."""
        self._services = {**KSERVE, "namespace": cluster.namespace}
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
        """Raises `ClusterError` with status 409 where the job exists.

        A dry run passes all checks and makes nothing. It refuses an unknown field, which a real one would drop.
        """
        dry = {"dry_run": "All", "field_validation": "Strict"} if dry_run else {}
        _, _, headers = self._call(
            self._custom.create_namespaced_custom_object_with_http_info,
            body=body,
            **dry,
            **self._jobs,
            doing="creating a training job, which does not exist yet",
        )
        if warning := (headers or {}).get("Warning"):
            self.say(f"the API server warns: {warning}")

    def get(self, name: str) -> Object | None:
        with _unless(404):
            return self._call(self._custom.get_namespaced_custom_object, name=name, shape=JOB, **self._jobs)
        return None

    def delete(self, name: str) -> None:
        """Delete a job with everything it made; no error if it has gone already.

        Never in the foreground: Trainer reconciles a TrainJob that is being deleted, and makes new pods for it.
        Its pods end after it: see :meth:`pods`.
        """
        with _unless(404):
            self._call(
                self._custom.delete_namespaced_custom_object, name=name, propagation_policy="Background", **self._jobs
            )

    def annotate(self, name: str, annotations: dict[str, str]) -> bool:
        """Whether it could be written. One try: Trainer's webhook, through which this goes, may be down."""
        body = {"metadata": {"annotations": annotations}}
        return self._once(self._custom.patch_namespaced_custom_object, name=name, body=body, **self._jobs) is not None

    def jobs(self, selector: str) -> list[Object]:
        listing = self._custom.list_namespaced_custom_object
        answer = self._call(listing, label_selector=selector, shape=JOBS, **self._jobs)
        return list(answer["items"])

    def pods(self, job: str) -> list[Any]:
        """The job's pods by node, as far as there are any; those of a deleted job as long as they take to end."""
        return sorted(self.select_pods(f"{JOBSET_LABEL}={job}"), key=node_of)

    def select_pods(self, selector: str) -> list[Any]:
        pods = self._call(self._core.list_namespaced_pod, self.namespace, label_selector=selector).items
        if not all(pod.metadata and pod.metadata.name and pod.status for pod in pods):
            raise self._odd("a pod without name or status")
        return list(pods)

    def has_queue(self, name: str) -> bool:
        """Whether Kueue has this queue in the namespace; also where this account may not ask."""
        with _unless(403):
            with _unless(404):
                self._call(
                    self._custom.get_namespaced_custom_object,
                    "kueue.x-k8s.io", "v1beta2", self.namespace, "localqueues", name,
                )  # fmt: skip
                return True
            return False
        return True

    def deployment(self, name: str) -> Any | None:
        with _unless(404):
            found = self._call(self._apps.read_namespaced_deployment, name, self.namespace)
            if found.spec is None:
                raise self._odd("a Deployment without spec")
            return found
        return None

    def patch_deployment(
        self, name: str, annotations: Mapping[str, str | None], *, replicas: int | None = None
    ) -> None:
        """Change annotations of its pods, which starts new ones in the place of the old, and how many there are."""
        spec: Object = {"template": {"metadata": {"annotations": dict(annotations)}}} if annotations else {}
        spec |= {"replicas": replicas} if replicas is not None else {}
        self._call(self._apps.patch_namespaced_deployment, name, self.namespace, {"spec": spec})

    def inference_service(self, name: str) -> Object | None:
        """One of KServe's; None also on a cluster without KServe, and where this account may not ask."""
        with _unless(403, 404):
            return self._call(self._custom.get_namespaced_custom_object, name=name, shape=SERVICE, **self._services)
        return None

    def patch_inference_service(
        self, name: str, annotations: Mapping[str, str | None], *, own: Mapping[str, str | None] | None = None
    ) -> None:
        """Change annotations of its pods, as of a Deployment's, and its own, by which KServe is told."""
        body: Object = {"spec": {"predictor": {"annotations": dict(annotations)}}} if annotations else {}
        body |= {"metadata": {"annotations": dict(own)}} if own else {}
        self._call(self._custom.patch_namespaced_custom_object, name=name, body=body, **self._services)

    def warnings(self, job: Object, pod: str = "") -> list[str]:
        """Texts of the warnings about a job's objects, or one of its pods, the latest last: quota, admission,
        scheduling, images, volumes.

        Those of an earlier job of the same name are still listed for an hour; they are older than this one.
        """
        name, made = job["metadata"]["name"], moment(job["metadata"].get("creationTimestamp"))
        events = self._call(self._core.list_namespaced_event, self.namespace, field_selector="type=Warning").items
        named = [(event.involved_object.name or "", event) for event in events]
        mine = [e for about, e in named if (about == pod if pod else _belongs(about, name)) and _when(e) >= made]
        return [f"{event.reason}: {event.message}" for event in sorted(mine, key=_when)]

    def log(
        self, pod: str, container: str, *, since_seconds: int | None = None, tail_lines: int | None = None
    ) -> list[str] | None:
        """The lines of a pod's container, each behind its time stamp; None where they cannot be read now."""
        text = self._once(
            self._core.read_namespaced_pod_log,
            pod,
            self.namespace,
            container=container,
            timestamps=True,
            **({"since_seconds": since_seconds} if since_seconds else {}),
            **({"tail_lines": tail_lines} if tail_lines else {}),
        )
        return None if text is None else str(text).splitlines()

    def _once(self, request: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """The answer to one request that nothing depends on; None where it fails."""
        try:
            return request(*arguments, _request_timeout=ONE_TRY_SECONDS, **named)
        except (client.ApiException, urllib3.exceptions.HTTPError, OSError, *_ODD):
            return None

    def _odd(self, what: object) -> ClusterError:
        """For an answer that no API server gives."""
        return ClusterError(
            f"what answers as the cluster is no Kubernetes API server ({' '.join(str(what).split())[:200]}): check the "
            "kubeconfig's server, and the proxy or login page in front of it"
        )

    def _call(
        self, request: Callable[..., Any], *arguments: Any, doing: str = "", shape: Any = None, **named: Any
    ) -> Any:
        """Make a request, again while its failure may pass; anything else is a `ClusterError`.

        Args:
            shape: of the answer, where the client does not know its kind (``shapes.py``).
        """
        wait, began, said = FIRST_WAIT_SECONDS, clock.now(), False
        while True:
            minutes = self._cluster.away_minutes
            try:
                answer = request(*arguments, _request_timeout=(10, 60), **named)
                return answer if shape is None else checked(answer, shape)
            except client.ApiException as error:
                if error.status == 401:
                    minutes = min(minutes, LOGIN_MINUTES)
                elif error.status not in PASSING:
                    raise ClusterError(explain(error, self._cluster), error.status) from error
                reason, refusal = f"{error.status} {error.reason}: {message_of(error)}", error
                asked = retry_after((error.headers or {}).get("Retry-After")) or 0.0
            except (urllib3.exceptions.HTTPError, OSError) as error:
                reason, refusal, asked = " ".join(str(error).split()), None, 0.0
            except _ODD as error:
                raise self._odd(error) from error
            if clock.now() + wait > began + minutes * 60:
                goes_on = "the training job goes on, and a retry or `af-pipelines resume` finds it again"
                if refusal is not None and refusal.status == 401:
                    raise ClusterAway(f"{explain(refusal, self._cluster)}; {goes_on}")
                raise ClusterAway(
                    f"the Kubernetes API server has not answered for {minutes:g} minutes ({reason}): check the "
                    "network, the VPN and the kubeconfig's server, and the webhook if one is named; "
                    + (f"it was asked about {doing}" if doing else goes_on)
                )
            if not said:
                self.say(f"waiting for the API server, up to {minutes:g} minutes ({reason})")
                said = True
            # Many steps wait for the same server: spread over time, they do not all come back at once.
            clock.sleep(max(asked, wait * random.uniform(0.7, 1.3)))
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)


def node_of(pod: Any) -> int:
    """The node that a pod is, by its label: a list of pods comes in no order, and not always whole."""
    return number((pod.metadata.labels or {}).get(INDEX_LABEL))


def _belongs(name: str, job: str) -> bool:
    """Whether an object's name is the job's or that of one of its children."""
    return name == job or name.startswith(f"{job}-{CONTAINER}-")


def _when(event: Any) -> datetime:
    """When an event was last seen; controllers of different age fill different fields."""
    series = event.series.last_observed_time if event.series else None
    return moment(series or event.last_timestamp or event.event_time or event.metadata.creation_timestamp)


@contextlib.contextmanager
def _unless(*statuses: int) -> Iterator[None]:
    try:
        yield
    except ClusterError as error:
        if error.status not in statuses:
            raise
