"""The MLflow server, or the embedded one: a sqlite file and an artifact folder beside it.

    client = open_client(tracking_uri(config))        # runs.py
    mlflow ui --backend-store-uri sqlite:///runs/mlflow/mlflow.db        # to look at the embedded one
"""

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Before mlflow is imported anywhere: nothing leaves the machine, and a request that hangs is our business to repeat.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints what it raises, with its traceback
logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import LifecycleStage  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

from megatron_af.tracking.runs import SQLITE  # noqa: E402


def open_client(uri: str) -> MlflowClient:
    """A client of the server, or of the sqlite store, which is made if it is not there.

    Three processes that make the tables at once leave a corrupt file, so it happens under a lock.
    """
    if not uri.startswith(SQLITE):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    folder = Path(uri.removeprefix(SQLITE)).parent
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / "store.lock"):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    return client


def store_of(uri: str) -> str:
    """An address as one store always has it, from whichever folder it is named."""
    if not uri.startswith(SQLITE):
        return uri.rstrip("/")
    return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}"


_REASON = re.compile(r"\[Errno -?\d+\] ([\w ]+)")
"""What the system says of a connection."""


def in_words(error: MlflowException, uri: str) -> str:
    """One sentence for what MLflow raises, without its SQL."""
    said = str(error).strip()
    place = uri.removeprefix(SQLITE)
    if "database is locked" in said:
        return f"{place} is locked by another process; try again when that has ended"
    if "file is not a database" in said or "malformed" in said:
        return f"{place} is no MLflow database, or a damaged one: restore it, or move it away and a new one is made"
    if "unsupported URI" in said:
        return f"tracking.uri = {uri}: MLflow has no store of this kind; give http(s)://, sqlite:/// or postgresql://"
    if "failed with exception" in said:  # in the words of three libraries, the last of which has the reason
        reason = _REASON.findall(said) or ["no answer"]
        return f"{place} does not answer ({reason[-1].lower()}); is it there? tracking.uri names it"
    return said.splitlines()[0] if said else f"{place}: MLflow refuses, and does not say why"


def is_of_use_again(error: MlflowException) -> bool:
    """Whether the same command may succeed another time."""
    return error.error_code != "PERMISSION_DENIED" and "unsupported URI" not in str(error)


def experiment_id(client: MlflowClient, name: str) -> str:
    """The experiment of that name, made if it is not there, and back if somebody deleted it: runs are asked for."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        if experiment.lifecycle_stage == LifecycleStage.DELETED:
            client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=_artifact_location(client.tracking_uri, name)))
    except MlflowException:
        # Another job of the same name was faster.
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return str(experiment.experiment_id)


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold ``path`` exclusively; other processes of this host wait. Released when the process ends, however."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _artifact_location(uri: str, name: str) -> str | None:
    if not uri.startswith(SQLITE):
        return None  # the server's own choice
    return (Path(uri.removeprefix(SQLITE)).parent / "artifacts" / name.replace("/", "_")).absolute().as_uri()
