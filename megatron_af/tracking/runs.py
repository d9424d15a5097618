"""Runs as a job sees them: the curriculum's, a stage's below it, each a spool with a process that sends it.

    parent = start_curriculum_run(config)                               # tools/run_curriculum.py
    run = start_stage_run(config, gpus="8 x H100", world_size=8)        # the training callback
    run.spool.metrics(step, {"loss": 2.5})
    run.end("FINISHED", "done")

No MLflow code runs here: a job only appends to files.
"""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from megatron_af.config import Config, ConfigError, TrackingConfig
from megatron_af.config.addresses import from_environment
from megatron_af.config.loading import to_yaml
from megatron_af.runs.digests import digest_value
from megatron_af.runs.identity import stage_inputs
from megatron_af.runs.records import StageRecord
from megatron_af.tracking.provenance import flatten, provenance_tags
from megatron_af.tracking.spool import Address, Spool

SENDER = "megatron_af.tracking.sender"
SQLITE = "sqlite:///"


class TrackedRun:
    """One start of a job: its spool, opened, and the process that sends it and notices when the job has gone.

    Where tracking is off, the spool is written all the same, for reports (``megatron_af.report``), and nobody sends it.
    """

    def __init__(
        self,
        folder: Path,
        address: Address,
        tracking: TrackingConfig,
        *,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        texts: Mapping[str, str],
    ) -> None:
        self.spool = Spool(folder)
        self.spool.open(address, params=params, tags=tags, texts=texts)
        self._sender = self._start_sender(tracking) if tracking.enabled else None

    def _start_sender(self, tracking: TrackingConfig) -> subprocess.Popen[bytes]:
        with (self.spool.folder / "sender.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", SENDER, str(self.spool.folder), self.spool.session,
                 str(tracking.linger_seconds), str(tracking.system_metrics_seconds)],
                stdin=subprocess.PIPE, stdout=log, stderr=log,
                start_new_session=True,  # what ends the job's process group must not end the one that reports it
                env=_sender_env(),
            )  # fmt: skip

    def end(self, status: str, reason: str) -> None:
        """Say how the job ended (MLflow's FINISHED, FAILED or KILLED); delivery goes on without it."""
        self.spool.end(status, reason)
        if self._sender is not None:
            assert self._sender.stdin is not None
            self._sender.stdin.close()

    def wait(self, seconds: float) -> bool:
        """Wait for the delivery to end; False when it takes longer."""
        try:
            if self._sender is not None:
                self._sender.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def start_curriculum_run(config: Config) -> TrackedRun:
    """The parent run of all stages; the same one each time the curriculum is run again in the same folder."""
    stages = {name: digest_value(stage) for name, stage in config.curriculum.items()}
    return TrackedRun(
        curriculum_spool(config),
        _curriculum_address(config),
        config.tracking,
        params=_shared_params(config),
        tags={"curriculum": ", ".join(stages), "config_digest": digest_value(config), **provenance_tags()},
        texts={"config.yaml": to_yaml(config)},
    )


def adopt_outer_run(config: Config) -> None:
    """Let the stages' runs lie below the run of whoever started this process, if it is in one (``$MLFLOW_RUN_ID``).

    Kubeflow Pipelines' MLflow plugin tells only its own pods, so a pipeline's steps call this before the training jobs
    that they start. The first one counts; a curriculum that has its run keeps it.
    """
    parent = curriculum_spool(config)
    if os.environ.get("MLFLOW_RUN_ID") and config.tracking.enabled and not (parent / "run.json").exists():
        Spool(parent).open(_curriculum_address(config), params={}, tags={}, texts={"config.yaml": to_yaml(config)})


def start_stage_run(config: Config, *, gpus: str, world_size: int) -> TrackedRun:
    """The run of ``config.stage`` with its recorded inputs, below the curriculum's run; resumed if it exists.

    Raises what :func:`~megatron_af.runs.identity.stage_inputs` raises, where none are recorded.
    """
    record = StageRecord.load(config.stage_folder(config.stage))
    inputs = record.inputs if record else stage_inputs(config, config.stage)
    parent = curriculum_spool(config)
    if not (parent / "run.json").exists():
        Spool(parent).open(_curriculum_address(config), params={}, tags={}, texts={"config.yaml": to_yaml(config)})
    folder = stage_spool(config, config.stage, inputs)
    address = Address(
        uri=tracking_uri(config),
        experiment=config.tracking.experiment or config.name,
        name=config.stage,
        parent=os.path.relpath(parent, folder),
        ends_parent=config.tracking.alone,
    )
    return TrackedRun(
        folder,
        address,
        config.tracking,
        params={
            **_shared_params(config),
            **flatten(config.curriculum[config.stage], "stage"),
        },
        tags={
            "stage": config.stage,
            "curriculum": ", ".join(config.curriculum),
            "world_size": str(world_size),
            **{f"digest.{name}": digest for name, digest in inputs.items()},
            **provenance_tags(gpus),
        },
        texts={"config.yaml": to_yaml(config)},
    )


def end_lost_run(config: Config, stage: str, inputs: Mapping[str, str]) -> None:
    """Of a stage whose job has failed: the end of its run, where nothing was left to write it. A container that is out
    of memory, or on a lost node, goes with the process that reports on the job."""
    folder = stage_spool(config, stage, inputs)
    if (folder / "run.json").is_file():
        Spool(folder, Address.load(folder).session).end_if_lost()


def send_the_rest(config: Config) -> None:
    """What was written after a stage's own sender had ended. Without the server it waits for the next time."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [sys.executable, "-m", "megatron_af.tracking", str(Path(config.output) / config.name)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=config.tracking.linger_seconds,
            env=_sender_env(),
        )  # fmt: skip


def curriculum_spool(config: Config) -> Path:
    return Path(config.output).absolute() / config.name / "tracking"


def stage_spool(config: Config, stage: str, inputs: Mapping[str, str]) -> Path:
    """A folder for each set of inputs: other data or another learning rate are another run."""
    identity = digest_value(dict(inputs)).removeprefix("sha256:")[:12]
    return config.stage_folder(stage).absolute() / "tracking" / identity


def newest_spool(folder: Path) -> Spool | None:
    """Of a stage's folder, the spool of the run that began last; None where no run did."""
    started = sorted(folder.glob("tracking/*/run.json"), key=lambda file: file.stat().st_mtime)
    return Spool(started[-1].parent) if started else None


def tracking_uri(config: Config) -> str:
    """What ``config.tracking.uri`` names, else ``$MLFLOW_TRACKING_URI``, else sqlite in ``output/mlflow``.

    Raises:
        ConfigError: the environment's address holds a password, or a database cannot lie below ``output``.
    """
    if uri := config.tracking.uri or from_environment("MLFLOW_TRACKING_URI"):
        return uri
    file = Path(config.output).absolute() / "mlflow" / "mlflow.db"
    if odd := re.search(r"\?|%[0-9A-Fa-f]{2}", str(file)):
        raise ConfigError(
            "the run cannot be tracked",
            [
                f"output = {config.output}: MLflow reads {odd[0]!r} in {file.parents[1]} as a part of an address, and "
                "keeps its database elsewhere; give another folder, or tracking.uri"
            ],
        )
    return f"{SQLITE}{file}"


def _shared_params(config: Config) -> dict[str, str]:
    """All sections that hold for every stage."""
    apart = ("curriculum", "stage", "steps")
    sections = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return flatten({name: section for name, section in sections.items() if name not in apart})


def _curriculum_address(config: Config) -> Address:
    return Address(
        uri=tracking_uri(config),
        experiment=config.tracking.experiment or config.name,
        name=config.name,
        # Whoever started us in a run of theirs (Kubeflow Pipelines' MLflow plugin) means it to be the parent.
        adopt=os.environ.get("MLFLOW_RUN_ID", ""),
    )


def _sender_env() -> dict[str, str]:
    """The job's environment, with this package importable whatever the working folder, and without the job's rank."""
    root = str(Path(__file__).resolve().parents[2])
    env = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_RUN_ID", "RANK", "WORLD_SIZE")}
    env["PYTHONPATH"] = os.pathsep.join(path for path in (root, env.get("PYTHONPATH", "")) if path)
    return env
