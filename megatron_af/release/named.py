"""What somebody calls a model.

    place = named("runs/demo")
    place = named("models:/demo@champion")
"""

from pathlib import Path

REGISTERED = "models:/"
"""Start of MLflow's address of a registered version: ``models:/NAME/NUMBER`` or ``models:/NAME@ALIAS``."""


def named(model: str) -> Path:
    """The folder of a model that is named by its path, or by its address in the registry of ``$MLFLOW_TRACKING_URI``.

    Raises:
        UnknownVersion: the registry has no such model, version or alias.
        DigestMismatch: the release is not any more what was registered.
    """
    if not model.startswith(REGISTERED):
        return Path(model)
    from megatron_af.release.served import release_of  # MLflow takes seconds to import

    return release_of(model)


def registered_name(model: str) -> str:
    """The name in the registry of a model that is named by its address there; of a path nothing."""
    return model.removeprefix(REGISTERED).partition("@")[0].partition("/")[0] if model.startswith(REGISTERED) else ""
