"""From a spool to its MLflow run: everything once, in order, however often it is interrupted.

    Delivery(folder).send_pending()
    send_waiting(Path("runs/demo"))       # every spool below a folder

A call may raise whatever a server and a network can raise; what was delivered before it stays delivered.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_af.files import append
from megatron_af.tracking.pictures import History, gates_by_depth, loss_curves
from megatron_af.tracking.spool import Address, Sent, read_spool, spool_key
from megatron_af.tracking.store import experiment_id, file_lock, open_client

from mlflow import MlflowClient  # isort: skip  (after store, which sets its environment)
from mlflow.entities import LifecycleStage, Metric, Param, RunTag  # isort: skip
from mlflow.exceptions import MlflowException  # isort: skip

KEY_TAG = "spool"
"""Tag of a run that holds its spool's key."""
METRICS_PER_REQUEST = 1000  # MLflow's limits
PARAMS_PER_REQUEST = TAGS_PER_REQUEST = 100
LONGEST_PARAM, LONGEST_TAG = 6000, 8000
REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}
"""Answers that say that a record will never be taken; anything else may pass when it is tried again."""


class Delivery:
    """Sends one spool, from the first record not sent yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent = Sent.load(folder)
        self._client: MlflowClient | None = None
        self._history, self._history_end = History(), 0

    def send_pending(self) -> None:
        try:
            self._send_pending()
        except MlflowException:
            self._client = None  # the next time sees whether the run is there
            raise

    def _send_pending(self) -> None:
        address = Address.load(self.folder)
        if self.sent.uri != address.uri:  # at first, and when a run moves to another server, which gets all of it
            self.sent = Sent(uri=address.uri)
            self._client = None
        if self._client is None:
            self._client = open_client(address.uri)
            self._see_that_it_is_there(self._client)
        if not self.sent.run_id:
            self.sent = replace(self.sent, run_id=ensure_run(self._client, self.folder))
        checkpoint = False
        metrics: list[Metric] = []
        end = self.sent.offset
        for record, end in read_spool(self.folder, self.sent.offset):
            if record["kind"] in ("metrics", "system", "evaluation"):
                metrics += _metrics(record)
                if len(metrics) < METRICS_PER_REQUEST:
                    continue
            self._send_metrics(metrics)
            metrics = []
            self._send(record, address)
            self._advance(end)
            checkpoint = checkpoint or record["kind"] == "checkpoint"
        self._send_metrics(metrics)
        self._advance(end)
        if checkpoint:
            self._send_pictures()

    def _see_that_it_is_there(self, client: MlflowClient) -> None:
        """A run that somebody deleted comes back, for its job goes on; one that is gone for good is made anew."""
        if not self.sent.run_id:
            return
        try:
            run = client.get_run(self.sent.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.sent = Sent(uri=self.sent.uri)
            self.sent.save(self.folder)
            return
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            client.restore_run(self.sent.run_id)

    def _is_for_ever(self, refusal: MlflowException) -> bool:
        """Whether a record will never be taken. A run that somebody deleted takes none until it comes back."""
        if refusal.error_code not in REFUSED:
            return False
        return bool(self.client.get_run(self.sent.run_id).info.lifecycle_stage != LifecycleStage.DELETED)

    @property
    def client(self) -> MlflowClient:
        assert self._client is not None, "send_pending opens the client"
        return self._client

    def _send(self, record: dict[str, Any], address: Address) -> None:
        try:
            match record["kind"]:
                case "open":
                    self._open(record, address)
                case "tags":
                    self._send_tags(record["values"])
                case "checkpoint":
                    self._send_tags({"checkpoint.uri": record["path"], "checkpoint.step": record["step"]})
                case "artifact":
                    self.client.log_artifact(self.sent.run_id, record["file"], record["to"])
                case "table":
                    self._send_table(record)
                case "close":
                    self._close(record, address)
        except FileNotFoundError as gone:
            self._set_aside(record, gone)
        except MlflowException as refusal:
            if not self._is_for_ever(refusal):
                raise
            self._set_aside(record, refusal)

    def _open(self, record: dict[str, Any], address: Address) -> None:
        if not address.adopt:
            self.client.update_run(self.sent.run_id, status="RUNNING")
        if address.ends_parent and (parent_run := self._own_parent(address)):
            self.client.update_run(parent_run, status="RUNNING")
        present = self.client.get_run(self.sent.run_id).data
        if "ended" in present.tags:  # of the start before this one
            self.client.delete_tag(self.sent.run_id, "ended")
        self._send_params({key: value for key, value in record["params"].items() if key not in present.params})
        self._send_tags(record["tags"])
        for name, text in record["texts"].items():
            self.client.log_text(self.sent.run_id, text, name)

    def _close(self, record: dict[str, Any], address: Address) -> None:
        self._send_pictures()
        if record["session"] != address.session:
            return  # the job has started again since
        self._send_tags({"ended": record["reason"]})
        if not address.adopt:
            self.client.set_terminated(self.sent.run_id, record["status"], end_time=record["time"])
        if address.ends_parent and (parent_run := self._own_parent(address)):
            self.client.set_terminated(parent_run, record["status"], end_time=record["time"])

    def _own_parent(self, address: Address) -> str:
        """Id of the parent run, empty where somebody else made it."""
        parent = self.folder / address.parent
        return "" if Address.load(parent).adopt else ensure_run(self.client, parent)

    def _send_metrics(self, metrics: list[Metric]) -> None:
        """The same metric twice, after a reply was lost, is one row in MLflow's store: its time is the record's."""
        for start in range(0, len(metrics), METRICS_PER_REQUEST):
            self._send_metrics_at_once(metrics[start : start + METRICS_PER_REQUEST])

    def _send_metrics_at_once(self, metrics: list[Metric]) -> None:
        try:
            self.client.log_batch(self.sent.run_id, metrics=metrics)
        except MlflowException as refusal:
            if not self._is_for_ever(refusal):
                raise
            if len(metrics) == 1:
                self._set_aside(dict(metrics[0]), refusal)
                return
            middle = len(metrics) // 2  # find the one that it does not take
            self._send_metrics_at_once(metrics[:middle])
            self._send_metrics_at_once(metrics[middle:])

    def _send_params(self, params: dict[str, str]) -> None:
        """Parameters that the run lacks: MLflow lets none change, and a resumed run has them."""
        entries = [Param(key, value[:LONGEST_PARAM]) for key, value in params.items()]
        for start in range(0, len(entries), PARAMS_PER_REQUEST):
            self.client.log_batch(self.sent.run_id, params=entries[start : start + PARAMS_PER_REQUEST])

    def _send_tags(self, tags: dict[str, str]) -> None:
        entries = [RunTag(key, str(value)[:LONGEST_TAG]) for key, value in tags.items() if value]
        for start in range(0, len(entries), TAGS_PER_REQUEST):
            self.client.log_batch(self.sent.run_id, tags=entries[start : start + TAGS_PER_REQUEST])

    def _send_table(self, record: dict[str, Any]) -> None:
        """A table as MLflow's UI shows it. (Its own ``log_table`` would append when a reply was lost.)"""
        name = record["name"]
        self.client.log_dict(self.sent.run_id, {"columns": record["columns"], "data": record["data"]}, name)
        tags = self.client.get_run(self.sent.run_id).data.tags
        tables = json.loads(tags.get("mlflow.loggedArtifacts", "[]"))
        if {"path": name, "type": "table"} not in tables:
            tables.append({"path": name, "type": "table"})
            self._send_tags({"mlflow.loggedArtifacts": json.dumps(tables)})

    def _send_pictures(self) -> None:
        for record, end in read_spool(self.folder, self._history_end):
            self._history_end = end
            if record["kind"] == "metrics":
                self._history.add(record["step"], record["values"])
        for name, figure in {"loss": loss_curves(self._history), "gates": gates_by_depth(self._history)}.items():
            if figure is not None:
                self.client.log_figure(self.sent.run_id, figure, f"pictures/{name}.png")

    def _advance(self, offset: int) -> None:
        if offset != self.sent.offset:
            self.sent = replace(self.sent, offset=offset)
            self.sent.save(self.folder)

    def _set_aside(self, record: dict[str, Any], refusal: Exception) -> None:
        """Keep what the server will never take out of the way of what it will."""
        append(self.folder / "refused.jsonl", json.dumps({"reason": str(refusal), "record": record}) + "\n")


def ensure_run(client: MlflowClient, folder: Path) -> str:
    """Id of the spool's run, which is made, below its parent run, if it is not there.

    Safe to call from several processes, and after a reply was lost: the run is found again by the spool's key.
    """
    address, key = Address.load(folder), spool_key(folder)
    with file_lock(folder / "run.lock"):
        sent = Sent.load(folder)
        if sent.run_id and sent.uri == address.uri:
            return sent.run_id
        run_id = _top_of(client, address.adopt) if address.adopt else _find_or_create(client, folder, address, key)
        Sent(uri=address.uri, run_id=run_id).save(folder)
        return run_id


def send_waiting(root: Path) -> tuple[list[Path], dict[Path, MlflowException]]:
    """Deliver every spool below ``root``: those that are up to date, and what was said of each that could not be.

    One that a server refuses keeps none back that lies behind it, be it for the same server or another.
    """
    # A pipeline's own run.json (pipeline/records.py) has no spool beside it.
    folders = sorted(file.parent for file in root.rglob("spool.jsonl") if (file.parent / "run.json").is_file())
    waiting: dict[Path, MlflowException] = {}
    for folder in folders:
        try:
            with file_lock(folder / "sender.lock"):
                Delivery(folder).send_pending()
        except MlflowException as error:
            waiting[folder] = error
    return [folder for folder in folders if folder not in waiting], waiting


def _top_of(client: MlflowClient, run_id: str) -> str:
    """The run above one that somebody else made: of a pipeline's task, the pipeline's, which outlives the task."""
    return str(client.get_run(run_id).data.tags.get("mlflow.parentRunId", run_id))


def _find_or_create(client: MlflowClient, folder: Path, address: Address, key: str) -> str:
    parent = ensure_run(client, folder / address.parent) if address.parent else ""
    # MLflow shows runs as a tree only within one experiment.
    experiment = client.get_run(parent).info.experiment_id if parent else experiment_id(client, address.experiment)
    found = client.search_runs([experiment], f"tags.{KEY_TAG} = '{key}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {KEY_TAG: key}
    if parent:
        tags["mlflow.parentRunId"] = parent
    first = next((record["time"] for record, _ in read_spool(folder)), None)
    return str(client.create_run(experiment, start_time=first, tags=tags, run_name=address.name).info.run_id)


def _metrics(record: dict[str, Any]) -> list[Metric]:
    return [Metric(name, float(value), record["time"], record["step"]) for name, value in record["values"].items()]
