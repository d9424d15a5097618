"""The model that is served on a cluster: which one, and that it is the registry's champion.

    serve(kube, "af2_3b"); roll_out(kube); unserve(kube)

The server is a Deployment (``kubeflow/manifests/components/serving``), or where the cluster has KServe an
InferenceService (``…/serving/kserve``); its pods serve the version in their annotation. A version is exchanged by
changing it, which Kubernetes carries out as a rolling update.
"""

from collections.abc import Mapping
from typing import Protocol

from af_pipelines.kube import Kube
from megatron_af.config.addresses import from_environment
from megatron_af.pipeline.job import StepFailed

SERVER = "af-serving"
MODEL, VERSION = "megatron-af/model", "megatron-af/version"
"""Annotations of the server's pods."""
STOP = "serving.kserve.io/stop"
"""KServe removes the pods of a service with this annotation, and makes them again when it goes."""


class Server(Protocol):
    """What serves, whichever object makes its pods."""

    address: str

    @property
    def annotations(self) -> Mapping[str, str]:
        """Of its pods."""

    def change(self, annotations: Mapping[str, str | None]) -> None:
        """Of the pods: new ones take the place of the old."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class _Deployment:
    address = f"http://{SERVER}:8080/v1"

    def __init__(self, kube: Kube, found: object) -> None:
        spec = found.spec  # type: ignore[attr-defined]
        self._kube, self._replicas = kube, spec.replicas or 0
        metadata = spec.template.metadata
        self.annotations = dict(metadata.annotations or {}) if metadata else {}

    def change(self, annotations: Mapping[str, str | None]) -> None:
        self._kube.patch_deployment(SERVER, annotations)

    def start(self) -> None:
        """As many as the autoscaler wants; it rests at 0."""
        if not self._replicas:
            self._kube.patch_deployment(SERVER, {}, replicas=1)

    def stop(self) -> None:
        self._kube.patch_deployment(SERVER, {}, replicas=0)


class _InferenceService:
    address = f"http://{SERVER}-predictor/v1"

    def __init__(self, kube: Kube, found: dict[str, object]) -> None:
        self._kube = kube
        self.annotations = found["spec"]["predictor"].get("annotations", {})  # type: ignore[index]

    def change(self, annotations: Mapping[str, str | None]) -> None:
        self._kube.patch_inference_service(SERVER, annotations)

    def start(self) -> None:
        self._kube.patch_inference_service(SERVER, {}, own={STOP: None})

    def stop(self) -> None:
        self._kube.patch_inference_service(SERVER, {}, own={STOP: "true"})


def serve(kube: Kube, model: str) -> str:
    """Serve ``model`` of the registry from now on; `roll_out` finds its version."""
    server = _server(kube)
    if server.annotations.get(MODEL) != model:
        server.change({MODEL: model, VERSION: None})
    server.start()
    return f"serving {model}@champion at {server.address} in namespace {kube.namespace}"


def unserve(kube: Kube) -> str:
    """End the server's pods; what they served is remembered."""
    _server(kube).stop()
    return f"nothing is served in namespace {kube.namespace}"


def roll_out(kube: Kube) -> str:
    """Bring the served version to the champion, and say what was done."""
    server = _server(kube)
    model, served = server.annotations.get(MODEL), server.annotations.get(VERSION)
    if not model:
        return "no model is named yet: `af-pipelines serve` names one"
    version = champion(model)
    if version is None:
        return f"{model} has no champion yet; version {served or 'none'} stays"
    if version == served:
        return f"{model} {version} is the champion and served"
    server.change({VERSION: version})
    return f"rolling out {model} {version} in the place of {served or 'none'}"


def champion(model: str) -> str | None:
    """Version of a registered model that is in production, or None; from the registry of ``$MLFLOW_TRACKING_URI``."""
    from megatron_af.release.aliases import aliases
    from megatron_af.tracking.store import in_words, open_client

    from mlflow.exceptions import MlflowException  # isort: skip  (after store, which sets its environment)

    uri = from_environment("MLFLOW_TRACKING_URI")
    if not uri:
        raise StepFailed("MLFLOW_TRACKING_URI is not set: it names the registry that knows the champion")
    try:
        return aliases(open_client(uri), model).get("champion")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise StepFailed(f"the registry at {uri} does not answer: {in_words(error, uri)}") from error


def _server(kube: Kube) -> Server:
    if (service := kube.inference_service(SERVER)) is not None:
        return _InferenceService(kube, service)
    if (deployment := kube.deployment(SERVER)) is not None:
        return _Deployment(kube, deployment)
    raise StepFailed(
        f"namespace {kube.namespace} has no Deployment and no InferenceService {SERVER}: add components/serving, or "
        "components/serving/kserve, to the overlay and apply it (docs/kubeflow.md)",
        give_up=True,
    )
