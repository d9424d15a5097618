"""A Kubeflow Pipelines server: submit a compiled pipeline, ask how it stands, stop it.

    endpoint = Endpoint.connect(cluster)
    run_id = endpoint.submit(Path("pipeline.yaml"), "demo-1", {"run": "demo-1"})

The address is ``endpoint`` in the cluster file or ``$KF_PIPELINES_ENDPOINT``; the login is the token in the file that
``$KF_PIPELINES_SA_TOKEN_PATH`` names (KFP's own variables), or in ``$AF_PIPELINES_TOKEN``.
"""

import json
import os
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import kfp_server_api  # type: ignore[import-untyped]
import urllib3

from af_pipelines.cluster import ClusterConfig
from megatron_af.config.addresses import from_environment
from megatron_af.foreign import read_text
from megatron_af.pipeline.job import StepFailed

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    from kfp.client import Client

ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
IMPLEMENTATION = "-impl"
"""In the name of the pod that runs a step; its siblings only drive it."""


class EndpointError(StepFailed):
    """The pipeline server refused or is not there; the message says why and what to do."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Endpoint:
    """One Kubeflow Pipelines API."""

    def __init__(self, host: str, cluster: ClusterConfig, token: str | None) -> None:
        self.host, self._cluster = host, cluster
        self._refuse_login_pages(token)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self._client = self._call(Client, host=host, namespace=cluster.namespace, existing_token=token)

    @classmethod
    def connect(cls, cluster: ClusterConfig) -> "Endpoint":
        """Raises `EndpointError` when no address is known or nobody answers there."""
        host = cluster.endpoint or from_environment("KF_PIPELINES_ENDPOINT")
        if not host:
            raise EndpointError(
                "no Kubeflow Pipelines server is named: set `endpoint` in the cluster file or KF_PIPELINES_ENDPOINT; "
                "without an ingress, `kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80` gives "
                "http://localhost:8080"
            )
        token = os.environ.get("AF_PIPELINES_TOKEN")
        if path := os.environ.get("KF_PIPELINES_SA_TOKEN_PATH"):
            try:
                token = read_text(Path(path)).strip()
            except OSError as error:
                raise EndpointError(
                    f"KF_PIPELINES_SA_TOKEN_PATH names {path}, which cannot be read ({error.strerror}): write the "
                    "server's token there, or unset the variable"
                ) from error
        return cls(host, cluster, token)

    def submit(self, pipeline: Path, name: str, parameters: dict[str, Any]) -> str:
        """Start a run and return its id."""
        with redirect_stdout(StringIO()):  # its links, which the caller prints once
            result = self._call(
                self._client.create_run_from_pipeline_package,
                str(pipeline),
                arguments=parameters,
                run_name=name,
                experiment_name=self._cluster.namespace,
                namespace=self._cluster.namespace,
                enable_caching=False,
                service_account=self._cluster.service_account,
            )
        return str(result.run_id)

    def state(self, run_id: str) -> str:
        return str(self._call(self._client.get_run, run_id).state or "PENDING")

    def state_if_known(self, run_id: str) -> str | None:
        """The state of a run, or None where the server has it no longer."""
        try:
            return self.state(run_id)
        except EndpointError as error:
            if error.status == 404:
                return None
            raise

    def tasks(self, run_id: str) -> dict[str, Any]:
        """Name of a task (`pipelines.task_names`) -> KFP's detail of it, with state, start, end and error."""
        details = self._call(self._client.get_run, run_id).run_details
        return {task.display_name: task for task in (details.task_details if details else None) or []}

    def terminate(self, run_id: str) -> None:
        self._call(self._client.terminate_run, run_id)

    def link(self, run_id: str) -> str:
        return f"{self.host}/#/runs/details/{run_id}"

    def _refuse_login_pages(self, token: str | None) -> None:
        """A login in front of the server answers every call with a redirect or a page, which the client takes for an
        empty success."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        health = f"{self.host.rstrip('/')}/apis/v2beta1/healthz"
        answer = self._call(
            urllib3.request, "GET", health, headers=headers, redirect=False, retries=False, timeout=30.0
        )
        kind = answer.headers.get("Content-Type", "")
        if answer.status // 100 == 3 or (answer.status == 200 and "json" not in kind):
            what = f"a redirect to {answer.headers.get('Location', 'nowhere')}" if answer.status // 100 == 3 else kind
            raise EndpointError(
                f"a login page answers at {self.host} ({what or 'no content type'}), not Kubeflow Pipelines: put a "
                "token that passes it into the file that KF_PIPELINES_SA_TOKEN_PATH names or into AF_PIPELINES_TOKEN, "
                "or use `kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80` and http://localhost:8080"
            )

    def _call(self, request: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return request(*arguments, **named)
        except kfp_server_api.ApiException as error:
            raise EndpointError(self._explain(error), error.status or 0) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise EndpointError(
                f"nothing answers at {self.host} ({' '.join(str(error).split())}): check the address, the VPN and the "
                "port-forward"
            ) from error

    def _explain(self, error: Any) -> str:
        try:
            message = json.loads(error.body)
            message = message.get("error_message") or message.get("message") or message
        except (TypeError, ValueError, AttributeError):
            message = " ".join(str(error.body or error.reason).split())[:300]
        if error.status in (401, 403):
            return (
                f"{self.host} refuses the login ({message}): renew the token in KF_PIPELINES_SA_TOKEN_PATH or "
                f"AF_PIPELINES_TOKEN, and see that it may use namespace {self._cluster.namespace}"
            )
        if error.status == 404:
            return f"{self.host} knows no such thing ({message}): check the run's id, the namespace and the address"
        return f"{self.host} answers {error.status} {error.reason}: {message}"
