"""The release behind a registered version, for whoever loads it without MLflow's own server.

    place = release_of("models:/demo@champion")         # by the registry of $MLFLOW_TRACKING_URI
"""

from pathlib import Path

import megatron_af.tracking.store  # noqa: F401  (before mlflow: it sets its environment)
from megatron_af.config.addresses import from_environment
from megatron_af.release.versions import UnknownVersion
from megatron_af.runs.digests import verify_digest

import mlflow  # isort: skip
from mlflow.exceptions import MlflowException  # isort: skip


def release_of(address: str) -> Path:
    """The folder of the release that was registered.

    Raises:
        ConfigError: the registry's address holds a password.
        UnknownVersion: the registry has no such model, version or alias, or it is none of ours.
        FileNotFoundError: the release is not there.
        DigestMismatch: the release is not any more what was registered.
    """
    from_environment("MLFLOW_TRACKING_URI")
    try:
        settings = mlflow.models.get_model_info(address).flavors["python_function"]["config"]
    except MlflowException as error:
        raise UnknownVersion(
            f"{address}: {error.message}; see `tools/promote.py show`, and that MLFLOW_TRACKING_URI names the registry"
        ) from error
    except KeyError:
        settings = {}
    if not settings.keys() >= {"release", "digest"}:
        raise UnknownVersion(
            f"{address}: a model that was registered by something else than `tools/promote.py register`: it names no "
            "release"
        )
    try:
        release = Path(mlflow.artifacts.download_artifacts(settings["release"]))
    except (MlflowException, OSError) as error:
        raise FileNotFoundError(
            f"{address}: its release, {settings['release']}, cannot be read here: load it where it is, or bring it back"
        ) from error
    verify_digest(release, settings["digest"])
    return release
