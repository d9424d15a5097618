"""A cluster's API over real HTTP: the Kubernetes and Kubeflow Pipelines paths that af_pipelines uses, and their moods.

with FakeCluster() as cluster:
    cluster.on_get(0, lambda job: cluster.run_pods(job))       # what the controllers do before the first GET
    cluster.refuse("POST", "trainjobs", 403, "…")               # the next such request
    cluster.answer_as("POST", "trainjobs", "create-500-webhook-down")    # as a real control plane answered
    kube = cluster.kube(ClusterConfig(…))
"""

import contextlib
import json
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

from kubernetes import client

from af_pipelines.cluster import ClusterConfig
from af_pipelines.kube import JOBSET_LABEL, Kube

Object = dict[str, Any]
RECORDED = Path(__file__).parents[1] / "fixtures" / "kubernetes"
JOBS = re.compile(r"^/apis/trainer\.kubeflow\.org/v1alpha1/namespaces/([^/]+)/trainjobs(?:/([^/]+))?$")
PODS = re.compile(r"^/api/v1/namespaces/([^/]+)/pods(?:/([^/]+)/log)?$")
QUEUES = re.compile(r"^/apis/kueue\.x-k8s\.io/v1beta2/namespaces/([^/]+)/localqueues/([^/]+)$")
DEPLOYMENTS = re.compile(r"^/apis/apps/v1/namespaces/([^/]+)/deployments/([^/]+)$")
SERVICES = re.compile(r"^/apis/serving\.kserve\.io/v1beta1/namespaces/([^/]+)/inferenceservices/([^/]+)$")
EVENTS = re.compile(r"^/api/v1/namespaces/([^/]+)/events$")
PIPELINES = re.compile(r"^/apis/v2beta1/(healthz|experiments|runs)(?:/([^:]+))?(?::(\w+))?$")


class FakeCluster:
    """One namespace's state; tests change it directly or as the job is asked for."""

    def __init__(self, namespace: str = "megatron-af") -> None:
        self.namespace = namespace
        self.jobs: dict[str, Object] = {}
        self.pods: list[Object] = []
        self.logs: dict[str, list[str]] = {}
        self.events: list[Object] = []
        self.queues: set[str] = set()
        self.deployments: dict[str, Object] = {}
        self.services: dict[str, Object] | None = None
        """None: this cluster has no KServe."""
        self.runs: dict[str, Object] = {}
        self.requests: list[str] = []
        self.queries: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.linger = 0
        """GETs for which a deleted job is still there."""
        self.pods_linger = 0
        """Lists of pods in which those of a deleted job still stand: they end after it."""
        self._refusals: list[tuple[str, str, int, str, dict[str, str]]] = []
        self._ending: set[str] = set()
        self._reactions: dict[int, Callable[[Object], None]] = {}
        self._gets = 0
        self._lock = threading.RLock()
        self._away = 0

    def __enter__(self) -> "FakeCluster":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def kube(self, cluster: ClusterConfig) -> Kube:
        settings = client.Configuration(host=self.url)
        settings.retries = False
        return Kube(cluster, client.ApiClient(settings))

    def kubeconfig(self, token: str = "valid") -> str:
        """The text of a kubeconfig file for this server."""
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "fake",
                "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me"}}],
                "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
                "users": [{"name": "me", "user": {"token": token}}],
            }
        )

    # What controllers and people do.

    def on_get(self, count: int, reaction: Callable[[Object], None]) -> None:
        """Just before a job is returned for the ``count``-th time from now (from 0)."""
        self._reactions[self._gets + count] = reaction

    def refuse(
        self, method: str, path: str, status: int, message: str = "", *, times: int = 1, retry_after: str = ""
    ) -> None:
        """Answer the next requests whose path contains ``path`` with a Kubernetes Status."""
        body = json.dumps({"kind": "Status", "status": "Failure", "message": message, "code": status})
        self._refusals += [(method, path, status, body, {"Retry-After": retry_after} if retry_after else {})] * times

    def answer_as(self, method: str, path: str, case: str, *, times: int = 1) -> None:
        """Answer the next requests whose path contains ``path`` with a recorded case, byte for byte."""
        recorded = json.loads((RECORDED / f"{case}.json").read_text())
        body = recorded["body"] if isinstance(recorded["body"], str) else json.dumps(recorded["body"])
        headers = {"Content-Type": recorded.get("content_type", "text/plain")}
        headers |= {"Warning": recorded["warning_header"]} if "warning_header" in recorded else {}
        self._refusals += [(method, path, recorded["status"], body, headers)] * times

    def log_in_first(self, *, redirect: bool) -> None:
        """From now on a login (Dex, an OIDC proxy) stands in front of Kubeflow Pipelines."""
        status, headers = (302, {"Location": "/dex/auth"}) if redirect else (200, {"Content-Type": "text/html"})
        for method in ("GET", "POST"):
            self._refusals += [(method, "/apis/v2beta1/", status, "<html>Log in</html>", headers)] * 100

    def go_away(self, requests: int) -> None:
        """Drop the connection of the next requests without an answer."""
        self._away = requests

    def finish(self, job: Object, kind: str = "Complete", reason: str = "AllJobsCompleted", message: str = "") -> None:
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        condition["lastTransitionTime"] = _now()
        job["status"] = {"conditions": [condition]}

    def run_pods(self, job: Object, restart: int = 0, **changes: Any) -> None:
        """Pods of all nodes, running, as JobSet makes them."""
        name, nodes = job["metadata"]["name"], job["spec"]["trainer"]["numNodes"]
        self.pods = [pod for pod in self.pods if pod["metadata"]["labels"].get(JOBSET_LABEL) != name]
        self.pods += [self.pod(name, index, restart, **changes) for index in range(nodes)]

    def pod(self, job: str, index: int, restart: int = 0, **changes: Any) -> Object:
        name = f"{job}-node-0-{index}-r{restart}"
        status: Object = {"phase": "Running", "conditions": [], "containerStatuses": []}
        if state := changes.get("state"):
            status["containerStatuses"] = [
                {"name": "node", "image": "af:1", "imageID": "", "ready": False, "restartCount": 0, "state": state}
            ]
        labels = {
            JOBSET_LABEL: job,
            "jobset.sigs.k8s.io/restart-attempt": str(restart),
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        metadata = {"name": name, "uid": name, "labels": labels}
        return {"metadata": metadata, "status": status | {k: v for k, v in changes.items() if k != "state"}}

    def print(self, pod: str, *lines: str) -> None:
        """Append to a pod's log."""
        log = self.logs.setdefault(pod, [])
        for line in lines:
            log.append(f"2026-01-01T00:00:{len(log):02d}.000000000Z {line}")

    def warn(self, name: str, reason: str, message: str, *, when: str = "") -> None:
        """A warning as today's controllers write them: of the older fields for the time none is filled."""
        self.events.append(
            {
                "metadata": {"name": f"event-{len(self.events)}"},
                "involvedObject": {"name": name},
                "reason": reason,
                "message": message,
                "lastTimestamp": None,
                "eventTime": when or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "type": "Warning",
            }
        )

    # The API.

    def answer(self, method: str, url: str, body: Object, headers: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
        with self._lock:
            parsed = urlparse(url)
            query = {key: values[0] for key, values in parse_qs(parsed.query).items()}
            self.requests.append(f"{method} {parsed.path}")
            self.queries.append(parsed.query)
            self.headers.append(headers)
            if self._away > 0:
                self._away -= 1
                raise ConnectionAbortedError
            for refusal in self._refusals:
                if refusal[0] == method and refusal[1] in parsed.path:
                    self._refusals.remove(refusal)
                    return refusal[2], refusal[3], refusal[4]
            named = ((QUEUES, self._queue), (DEPLOYMENTS, self._deployment), (SERVICES, self._service))
            for pattern, handle in ((JOBS, self._job), (PODS, self._pod), (EVENTS, self._event), *named):
                if match := pattern.match(parsed.path):
                    if match[1] != self.namespace:
                        return 404, {"message": f'namespaces "{match[1]}" not found'}, {}
                    name = match[2] if match.re.groups > 1 else None
                    return *handle(method, name, query, body), {}
            if match := PIPELINES.match(parsed.path):
                return *self._pipelines(method, match, body), {}
            return 404, {"message": "404 page not found"}, {}

    def _job(self, method: str, name: str | None, query: dict[str, str], body: Object) -> tuple[int, Any]:
        if method == "POST":
            if body["metadata"]["name"] in self.jobs:
                return 409, {"message": f'trainjobs "{body["metadata"]["name"]}" already exists'}
            if query.get("dryRun") != "All":
                body["metadata"] |= {"uid": body["metadata"]["name"], "creationTimestamp": _now()}
                self.jobs[body["metadata"]["name"]] = body
            return 201, body
        if name is None:
            wanted = dict(term.split("=") for term in query.get("labelSelector", "").split(",") if term)
            found = [job for job in self.jobs.values() if wanted.items() <= job["metadata"]["labels"].items()]
            return 200, {"items": found}
        if name not in self.jobs:
            return 404, {"message": f'trainjobs.trainer.kubeflow.org "{name}" not found'}
        job = self.jobs[name]
        if method == "DELETE":
            job["metadata"]["deletionTimestamp"] = _now()
            if body.get("propagationPolicy", query.get("propagationPolicy")) == "Foreground":
                # Trainer reconciles what is being deleted: another JobSet with pods of its own.
                self.pods += [self.pod(name, index, restart=9) for index in range(job["spec"]["trainer"]["numNodes"])]
                return 200, job
            self._ending.add(name)
            if not self.linger:
                del self.jobs[name]
            return 200, {"status": "Success"}
        if method == "PATCH":
            job["metadata"]["annotations"] |= body["metadata"]["annotations"]
            return 200, job
        if "deletionTimestamp" in job["metadata"]:
            self.linger -= 1
            if self.linger <= 0:
                del self.jobs[name]
            return 200, job
        if reaction := self._reactions.pop(self._gets, None):
            reaction(job)
        self._gets += 1
        return 200, job

    def _pod(self, method: str, name: str | None, query: dict[str, str], body: Object) -> tuple[int, Any]:
        if name:
            return 200, "\n".join(self.logs.get(name, []))
        wanted = dict([query["labelSelector"].split("=", 1)])
        if wanted.get(JOBSET_LABEL) in self._ending:
            self.pods_linger -= 1
            if self.pods_linger < 0:
                self._ending.discard(wanted[JOBSET_LABEL])
                self.pods = [p for p in self.pods if p["metadata"]["labels"].get(JOBSET_LABEL) != wanted[JOBSET_LABEL]]
        found = [pod for pod in self.pods if wanted.items() <= pod["metadata"]["labels"].items()]
        return 200, {"items": found[::-1]}  # in no order that means anything

    def _event(self, method: str, name: str | None, query: dict[str, str], body: Object) -> tuple[int, Any]:
        return 200, {"items": self.events}

    def _queue(self, method: str, name: str | None, query: dict[str, str], body: Object) -> tuple[int, Any]:
        if name in self.queues:
            return 200, {"metadata": {"name": name}}
        return 404, {"message": f'localqueues.kueue.x-k8s.io "{name}" not found'}

    def _deployment(self, method: str, name: str | None, query: dict[str, str], body: Object) -> tuple[int, Any]:
        if name not in self.deployments:
            return 404, {"message": f'deployments.apps "{name}" not found'}
        spec = self.deployments[name]["spec"]
        if method == "PATCH":
            annotations = spec["template"].setdefault("metadata", {}).setdefault("annotations", {})
            annotations |= body["spec"].pop("template", {}).get("metadata", {}).get("annotations", {})
            for key in [key for key, value in annotations.items() if value is None]:
                del annotations[key]
            spec |= body["spec"]
        return 200, self.deployments[name]

    def _service(self, method: str, name: str | None, query: dict[str, str], body: Object) -> tuple[int, Any]:
        if self.services is None:
            return 404, "404 page not found"
        if name not in self.services:
            return 404, {"message": f'inferenceservices.serving.kserve.io "{name}" not found'}
        service = self.services[name]
        if method == "PATCH":
            for part, changes in (
                (service["metadata"], body.get("metadata", {})), (service["spec"]["predictor"],
                body.get("spec", {}).get("predictor", {})),
            ):  # fmt: skip
                merged = part.get("annotations", {}) | changes.get("annotations", {})
                part["annotations"] = {key: value for key, value in merged.items() if value is not None}
        return 200, service

    def _pipelines(self, method: str, match: re.Match[str], body: Object) -> tuple[int, Any]:
        kind, name, action = match.groups()
        if kind == "healthz":
            return 200, {"multi_user": False}
        if kind == "experiments":
            return 200, {"experiments": [], "experiment_id": "e-1", "display_name": "af"}
        if method == "POST" and name is None:
            run_id = f"run-{len(self.runs) + 1}"
            self.runs[run_id] = body | {"run_id": run_id, "state": "RUNNING"}
            return 200, self.runs[run_id]
        if name not in self.runs:
            return 404, {"error_message": f"run {name} not found"}
        if action == "terminate":
            self.runs[name]["state"] = "CANCELED"
            return 200, {}
        return 200, self.runs[name]


def _handler(cluster: FakeCluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length) or b"{}") if length else {}
            try:
                status, answer, headers = cluster.answer(self.command, self.path, body, dict(self.headers))
            except ConnectionAbortedError:
                self.close_connection = True
                self.connection.close()
                return
            data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            plain = {"Content-Type": "text/plain" if isinstance(answer, str) else "application/json"}
            headers = plain | headers
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(data)

        do_GET = do_POST = do_DELETE = do_PATCH = _serve

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
