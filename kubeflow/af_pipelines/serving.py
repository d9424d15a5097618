"""The model that is served on a cluster: which one, and that it is the registry's champion.

    serve(kube, "af2_3b"); roll_out(kube); unserve(kube)

The server is a Deployment (``kubeflow/manifests/components/serving``) whose pods serve the version in their annotation.
A version is exchanged by changing it, which Kubernetes carries out as a rolling update.
"""

import os

from af_pipelines.kube import Kube
from megatron_af.pipeline.job import StepFailed

DEPLOYMENT = "af-serving"
MODEL, VERSION = "megatron-af/model", "megatron-af/version"
"""Annotations of the server's pods."""


def serve(kube: Kube, model: str) -> str:
    """Serve ``model`` of the registry from now on; `roll_out` finds its version."""
    template, replicas = _server(kube)
    changes = {} if template.get(MODEL) == model else {MODEL: model, VERSION: None}
    kube.patch_deployment(DEPLOYMENT, changes, replicas=replicas or 1)
    return f"serving {model}@champion at http://{DEPLOYMENT}:8080/invocations in namespace {kube.namespace}"


def unserve(kube: Kube) -> str:
    """End the server's pods; what they served is remembered."""
    _server(kube)
    kube.patch_deployment(DEPLOYMENT, {}, replicas=0)
    return f"nothing is served in namespace {kube.namespace}"


def roll_out(kube: Kube) -> str:
    """Bring the served version to the champion, and say what was done."""
    template, _ = _server(kube)
    model, served = template.get(MODEL), template.get(VERSION)
    if not model:
        return "no model is named yet: `af-pipelines serve` names one"
    version = champion(model)
    if version is None:
        return f"{model} has no champion yet; version {served or 'none'} stays"
    if version == served:
        return f"{model} {version} is the champion and served"
    kube.patch_deployment(DEPLOYMENT, {VERSION: version})
    return f"rolling out {model} {version} in the place of {served or 'none'}"


def champion(model: str) -> str | None:
    """Version of a registered model that is in production, or None; from the registry of ``$MLFLOW_TRACKING_URI``."""
    from megatron_af.release.aliases import aliases
    from megatron_af.tracking.store import open_client

    from mlflow.exceptions import MlflowException  # isort: skip  (after store, which sets its environment)

    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        raise StepFailed("MLFLOW_TRACKING_URI is not set: it names the registry that knows the champion")
    try:
        return aliases(open_client(uri), model).get("champion")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise StepFailed(f"the registry at {uri} does not answer: {error.message}") from error


def _server(kube: Kube) -> tuple[dict[str, str], int]:
    """Annotations of the server's pods, and how many there shall be."""
    found = kube.deployment(DEPLOYMENT)
    if found is None:
        raise StepFailed(
            f"namespace {kube.namespace} has no Deployment {DEPLOYMENT}: add components/serving to the overlay and "
            "apply it (docs/kubeflow.md)",
            give_up=True,
        )
    return dict(found.spec.template.metadata.annotations or {}), int(found.spec.replicas or 0)
