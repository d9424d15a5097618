"""Everything that was spooled arrives once, whatever the server does meanwhile."""

import json
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from megatron_af.tracking.delivery import Delivery, ensure_run, send_waiting
from megatron_af.tracking.spool import Address, Sent, Spool
from megatron_af.tracking.store import open_client
from tests.servers import free_port
from tests.tracking.mlflow_server import MlflowServer


def address(server: MlflowServer, **more: object) -> Address:
    return Address(uri=f"http://127.0.0.1:{server.port}", experiment="exp", name="align", **more)  # type: ignore[arg-type]


def opened(folder: Path, to: Address, **params: str) -> Spool:
    spool = Spool(folder)
    spool.open(to, params=params, tags={"stage": "align"}, texts={"config.yaml": "name: demo\n"})
    return spool


def write_steps(spool: Spool, first: int, last: int) -> None:
    for step in range(first, last + 1):
        spool.metrics(step, {"loss": 1 / step, "gate_attn/0": 0.01 * step, "gate_attn/1": -0.01 * step})


def test_a_run_with_all_its_parts(tmp_path: Path, server: MlflowServer) -> None:
    spool = opened(tmp_path / "s", address(server), **{f"p{i}": str(i) for i in range(150)})
    write_steps(spool, 1, 700)  # three requests
    spool.append("checkpoint", step=700, path="/checkpoints/step_700")
    spool.append("table", name="evaluation/skills.json", columns=["skill", "audio"], data=[["what", 0.5]])
    spool.end("FINISHED", "done")
    Delivery(spool.folder).send_pending()

    (run,) = server.runs.values()
    assert server.history(run["info"]["run_id"], "loss") == list(range(1, 701))
    assert len(run["params"]) == 150
    assert run["info"]["status"] == "FINISHED" and run["info"]["run_name"] == "align"
    assert run["tags"]["checkpoint.uri"] == "/checkpoints/step_700" and run["tags"]["ended"] == "done"
    artifacts = server.artifacts / run["info"]["run_id"]
    assert (artifacts / "config.yaml").read_text() == "name: demo\n"
    assert (artifacts / "pictures/loss.png").stat().st_size > 5_000
    assert (artifacts / "pictures/gates.png").stat().st_size > 5_000
    assert json.loads((artifacts / "evaluation/skills.json").read_text())["data"] == [["what", 0.5]]
    assert json.loads(run["tags"]["mlflow.loggedArtifacts"]) == [{"path": "evaluation/skills.json", "type": "table"}]


@pytest.mark.parametrize("trouble", ["refuse", "broken", "lose_reply", "down"])
def test_what_a_failing_server_missed_is_sent_later(tmp_path: Path, server: MlflowServer, trouble: str) -> None:
    spool = opened(tmp_path / "s", address(server))
    delivery = Delivery(spool.folder)
    delivery.send_pending()
    for round in range(3):
        write_steps(spool, 1 + 10 * round, 10 + 10 * round)
        if trouble == "down":
            server.stop()
        server.trouble = trouble
        for _ in range(2):
            with pytest.raises(MlflowException):
                delivery.send_pending()
        server.trouble = ""
        if trouble == "down":
            server.start()
        if round != 1:  # one outage is followed by another before anything was sent
            delivery.send_pending()
    (run_id,) = server.runs
    assert server.history(run_id, "loss") == list(range(1, 31))


def test_a_lost_reply_makes_no_second_run(tmp_path: Path, server: MlflowServer) -> None:
    spool = opened(tmp_path / "s", address(server))
    write_steps(spool, 1, 3)
    server.experiments.append("exp")
    server.trouble = "lose_reply"
    for _ in range(3):
        with pytest.raises(MlflowException):
            Delivery(spool.folder).send_pending()
    server.trouble = ""
    Delivery(spool.folder).send_pending()
    (run_id,) = server.runs
    assert server.history(run_id, "loss") == [1, 2, 3]


def test_a_resumed_job_goes_on_in_its_run(tmp_path: Path, server: MlflowServer) -> None:
    first = opened(tmp_path / "s", address(server), learning_rate="1e-4", only_first="x")
    write_steps(first, 1, 7)
    first.end("KILLED", "stopped")
    Delivery(first.folder).send_pending()
    (run_id,) = server.runs
    assert server.runs[run_id]["info"]["status"] == "KILLED"

    again = opened(first.folder, address(server), learning_rate="2e-4")  # MLflow would refuse the change
    assert again.last_step() == 7
    write_steps(again, 8, 9)
    Delivery(first.folder).send_pending()
    assert list(server.runs) == [run_id]
    assert server.runs[run_id]["info"]["status"] == "RUNNING" and "ended" not in server.runs[run_id]["tags"]
    assert server.runs[run_id]["params"]["learning_rate"] == "1e-4"
    assert server.history(run_id, "loss") == list(range(1, 10))


def test_the_end_of_an_earlier_start_does_not_end_the_present_one(tmp_path: Path, server: MlflowServer) -> None:
    first = opened(tmp_path / "s", address(server))
    again = opened(first.folder, address(server))
    first.end("FAILED", "died")  # noticed after the job had started again
    Delivery(first.folder).send_pending()
    (run,) = server.runs.values()
    assert run["info"]["status"] == "RUNNING"
    again.end("FINISHED", "done")
    Delivery(first.folder).send_pending()
    assert run["info"]["status"] == "FINISHED"


def test_a_record_that_is_never_taken_stops_nothing(tmp_path: Path, server: MlflowServer) -> None:
    spool = opened(tmp_path / "s", address(server))
    write_steps(spool, 1, 3)
    spool.metrics(4, {"unwelcome": 1.0, "loss": 0.25})
    spool.append("artifact", file=str(tmp_path / "gone.txt"), to="")
    write_steps(spool, 5, 6)
    Delivery(spool.folder).send_pending()
    (run_id,) = server.runs
    assert server.history(run_id, "loss") == [1, 2, 3, 4, 5, 6]
    refused = [json.loads(line) for line in (spool.folder / "refused.jsonl").read_text().splitlines()]
    assert ["unwelcome" in refused[0]["reason"], "gone.txt" in refused[1]["reason"]] == [True, True]


def test_stages_nest_below_the_curriculum_whoever_comes_first(tmp_path: Path, server: MlflowServer) -> None:
    parent = opened(tmp_path / "tracking", address(server))
    for stage in ("align", "tune"):
        child = opened(tmp_path / stage, address(server, parent="../tracking", ends_parent=True))
        child.end("FINISHED", "done")
        Delivery(child.folder).send_pending()
    runs = list(server.runs.values())
    assert [run["tags"].get("mlflow.parentRunId") for run in runs] == [None, "run0", "run0"]
    assert runs[0]["info"]["status"] == "FINISHED", "stages that run on their own end the parent"
    assert ensure_run(open_client(f"http://127.0.0.1:{server.port}"), parent.folder) == "run0"


def test_a_parent_that_somebody_else_made_is_not_ended(tmp_path: Path, server: MlflowServer) -> None:
    client = open_client(f"http://127.0.0.1:{server.port}")
    theirs = client.create_run(client.create_experiment("pipeline"), run_name="theirs").info.run_id
    opened(tmp_path / "tracking", address(server, adopt=theirs))
    child = opened(tmp_path / "align", address(server, parent="../tracking", ends_parent=True))
    child.end("FINISHED", "done")
    Delivery(child.folder).send_pending()
    assert server.runs[theirs]["info"]["status"] == "RUNNING"
    assert [run["tags"].get("mlflow.parentRunId") for run in server.runs.values()] == [None, theirs]


def test_below_a_pipelines_task_the_stages_hang_on_the_pipeline(tmp_path: Path, server: MlflowServer) -> None:
    client = open_client(f"http://127.0.0.1:{server.port}")
    experiment = client.create_experiment("of the pipelines")
    pipeline = client.create_run(experiment, run_name="pipeline").info.run_id
    task = client.create_run(experiment, tags={"mlflow.parentRunId": pipeline}, run_name="align").info.run_id
    opened(tmp_path / "tracking", address(server, adopt=task))
    child = opened(tmp_path / "align", address(server, parent="../tracking"))
    child.end("FINISHED", "done")
    Delivery(child.folder).send_pending()
    assert [run["tags"].get("mlflow.parentRunId") for run in server.runs.values()] == [None, pipeline, pipeline]
    assert {run["info"]["experiment_id"] for run in server.runs.values()} == {experiment}, "or no page shows the tree"


def test_another_server_gets_the_run_from_its_start(tmp_path: Path, server: MlflowServer) -> None:
    first = opened(tmp_path / "s", address(server))
    write_steps(first, 1, 4)
    Delivery(first.folder).send_pending()
    other = MlflowServer(tmp_path / "other")
    other.start()
    try:
        again = opened(first.folder, address(other))
        write_steps(again, 5, 6)
        Delivery(first.folder).send_pending()
    finally:
        other.stop()
    assert other.history("run0", "loss") == [1, 2, 3, 4, 5, 6]
    assert server.history("run0", "loss") == [1, 2, 3, 4]


def test_in_the_embedded_store_a_repeated_request_doubles_nothing(tmp_path: Path, store: str) -> None:
    spool = opened(tmp_path / "s", Address(uri=store, experiment="exp/nested", name="align"))
    write_steps(spool, 1, 5)
    spool.metrics(6, {"loss": float("nan")})
    spool.end("FINISHED", "done")
    Delivery(spool.folder).send_pending()
    sent = Sent.load(spool.folder)
    Sent(uri=sent.uri, run_id=sent.run_id).save(spool.folder)  # as if no reply had ever come
    Delivery(spool.folder).send_pending()

    client = open_client(store)
    history = client.get_metric_history(sent.run_id, "loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4, 5, 6]
    assert client.get_run(sent.run_id).info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(sent.run_id)} == {"config.yaml", "pictures"}


def test_everything_below_a_folder_is_sent(tmp_path: Path, server: MlflowServer) -> None:
    for name in ("tracking", "align/tracking/0", "tune/tracking/0"):
        opened(tmp_path / name, address(server))
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/run.json").write_text('{"launch": {"run": "r-1"}, "config": "{}"}')  # pipeline/records.py
    for _ in range(2):
        delivered, waiting = send_waiting(tmp_path)
        assert (len(delivered), waiting, len(server.runs)) == (3, {}, 3)


def test_one_that_cannot_be_sent_keeps_none_back(tmp_path: Path, server: MlflowServer) -> None:
    away = Address(uri=f"http://127.0.0.1:{free_port()}", experiment="exp", name="align")
    first, second = (opened(tmp_path / "a", away), opened(tmp_path / "b", address(server)))
    delivered, waiting = send_waiting(tmp_path)
    assert (delivered, list(waiting)) == ([second.folder], [first.folder])


def test_a_run_that_somebody_deleted_goes_on(tmp_path: Path, store: str) -> None:
    spool = opened(tmp_path / "s", Address(uri=store, experiment="exp", name="align"))
    write_steps(spool, 1, 3)
    Delivery(spool.folder).send_pending()
    first, client = Sent.load(spool.folder).run_id, open_client(store)
    client.delete_run(first)
    write_steps(spool, 4, 5)
    Delivery(spool.folder).send_pending()
    assert client.get_run(first).info.lifecycle_stage == "active"
    assert len(client.get_metric_history(first, "loss")) == 5

    Sent(uri=store, run_id="0" * 32, offset=Sent.load(spool.folder).offset).save(spool.folder)  # as if gone for good
    Delivery(spool.folder).send_pending()
    assert Sent.load(spool.folder).run_id == first and not (spool.folder / "refused.jsonl").exists()


def test_a_run_that_is_deleted_while_its_job_goes_on_loses_nothing(tmp_path: Path, store: str) -> None:
    """The sender keeps one delivery as long as the job lives."""
    spool = opened(tmp_path / "s", Address(uri=store, experiment="exp", name="align"))
    write_steps(spool, 1, 3)
    delivery = Delivery(spool.folder)
    delivery.send_pending()
    run_id, client = Sent.load(spool.folder).run_id, open_client(store)
    for record in (lambda: write_steps(spool, 4, 5), lambda: spool.append("checkpoint", step=5, path="/step_5")):
        client.delete_run(run_id)
        record()
        with pytest.raises(MlflowException, match="deleted"):
            delivery.send_pending()
        delivery.send_pending()  # the sender tries again
    run = client.get_run(run_id)
    assert run.info.lifecycle_stage == "active" and run.data.tags["checkpoint.step"] == "5"
    assert [metric.step for metric in client.get_metric_history(run_id, "loss")] == [1, 2, 3, 4, 5]
    assert not (spool.folder / "refused.jsonl").exists()
