"""One command measures a stage, with and without examples."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_af.config import Config, DatasetConfig, RetrievalConfig, TrackingConfig
from megatron_af.config.loading import to_yaml
from megatron_af.evaluate.hearing import evaluation_rows
from megatron_af.evaluate.measure import measure_contrastive, measure_elsewhere
from megatron_af.runs.paths import resolve_entry
from megatron_af.runs.pointers import checkpoint_digest
from megatron_af.runs.results import Results
from megatron_af.tracking.delivery import send_waiting
from megatron_af.tracking.runs import curriculum_spool, stage_spool
from megatron_af.tracking.spool import Address, Spool, read_spool
from megatron_af.tracking.store import open_client
from tests.data.toy import write_tone
from tests.distributed import run_distributed
from tests.train import toy_run as tool
from tests.train.toy_run import tool_run
from tests.trained_run import trained_run


def asked_run(folder: Path) -> Config:
    """A trained run with recordings to train on, to take examples from and to be asked about."""
    config = trained_run(folder)
    for name, count in (("train", 5), ("test", 2)):
        rows = []
        for i in range(count):
            write_tone(folder / f"{name}/{i}.wav", 2.0, 10 * i + len(name))
            question = {"prompt": "w5 w7", "output": f"w{i}"}
            clip = {"path": f"{name}/{i}.wav", "duration": 2.0}
            rows.append(json.dumps({"id": f"{name}-{i}", "clips": [clip], "questions": [question]}))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    stages = {
        "clap": dataclasses.replace(config.curriculum["clap"], blend={"train": 1.0}),
        "stage": dataclasses.replace(config.curriculum["stage"], blend={"train": 1.0}, evaluation=("test",)),
    }
    datasets = {name: DatasetConfig(manifest=f"{name}.jsonl") for name in ("train", "test")}
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, datasets=datasets),
        curriculum=stages,
        retrieval=RetrievalConfig(stage="clap", datasets=("train",)),
    )


@pytest.mark.slow
def test_one_command_measures_with_and_without_examples(tmp_path: Path, store: str) -> None:
    """What is measured behind examples goes to MLflow."""
    tracking = TrackingConfig(uri=store, system_metrics_seconds=0, linger_seconds=60)
    config = dataclasses.replace(asked_run(tmp_path), tracking=tracking)
    above = Address(uri=store, experiment="tiny", name="tiny")
    Spool(curriculum_spool(config)).open(above, params={}, tags={}, texts={})
    of_stage = dataclasses.replace(above, name="stage", parent="../../../tracking")
    spool = Spool(stage_spool(config, "stage", {"data": "sha256:0"}))
    spool.open(of_stage, params={}, tags={}, texts={})
    top = tmp_path / "top.yaml"
    top.write_text(to_yaml(config))
    tool_run("tools/build_retrieval.py", "index", "--config", str(top))
    run = ["tools/evaluate.py", "--config", str(top), "stage=stage"]
    tool_run(*run)
    folder = tmp_path / "runs/tiny/stage"
    alone = (folder / "hearing.json").read_text(), (folder / "answers.jsonl").read_text()
    two = [sys.executable, "-m", "megatron_af.pipeline.torchrun", "--standalone", "--nproc_per_node", "2"]
    said = [{"file": f"test/{i}.wav", "question": "w5 w7", "answer": f"w{i}"} for i in range(2)]
    (tmp_path / "toy.json").write_text(json.dumps(said))
    columns = "{audio: file, prompt: question, output: answer}"
    (tmp_path / "toy.yaml").write_text(
        f"title: toy\nsource: {{format: json, path: toy.json, columns: {columns}}}\nmetrics: [exact]\n"
    )
    suite = f"curriculum.stage.suites=[{tmp_path / 'toy.yaml'}]"
    shots = [*two, str(tool.ROOT / run[0]), *run[1:3], "--shots", "2,4", "--from", "train", *run[3:], suite]
    done = subprocess.run(shots, env=tool.environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "4 shots" in done.stdout and "examples from train" in done.stdout
    assert alone == ((folder / "hearing.json").read_text(), (folder / "answers.jsonl").read_text()), "of 0 shots"
    for number in (2, 4):
        found = json.loads((folder / f"few_shot/{number}_from_train/hearing.json").read_text())["test"]["overall"]
        assert (found["n"], found["too_long"], found["cut_short"]) == (2, 0, 0)
        behind = json.loads((folder / f"few_shot/{number}_from_train/toy/suite-toy.json").read_text())
        assert behind["n"] == 2 and behind["too_long"] == 0
    send_waiting(tmp_path / "runs")  # where the command had not time enough
    client = open_client(store)
    sent = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    (metrics,) = (run.data.metrics for run in sent if run.info.run_name == "stage")
    for number in (2, 4):
        assert metrics[f"few_shot/{number}_from_train/test/overall/n"] == 2.0
        assert metrics[f"few_shot/{number}_from_train/toy/exact"] == 0.0
    logged = [record["kind"] for record, _ in read_spool(spool.folder)]
    assert logged.count("evaluation") == 2, "once for each number, by one process"
    beside = tmp_path / "beside"
    tool_run(*run[:3], "--suite", str(tmp_path / "toy.yaml"), "--output", str(beside), *run[3:])
    assert json.loads((beside / "toy/suite-toy.json").read_text())["n"] == 2 and not list(beside.glob("test*"))

    more = [*run[:3], "--shots", "6", "--from", "train", *run[3:]]
    refused = subprocess.run(
        [sys.executable, *more], env=tool.environment(), cwd=tool.ROOT, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("6 examples were asked for: train has 5 recordings")


def elsewhere(rank: int, world_size: int, config: Config, checkpoint: Path, output: Path) -> None:
    sets = {name: evaluation_rows(config, name) for name in ("train", "test")}
    measure_elsewhere(config, sets, checkpoint, output)


@pytest.mark.slow
def test_any_rows_are_asked_about_beside_the_stages_own_results(tmp_path: Path) -> None:
    config = dataclasses.replace(asked_run(tmp_path), stage="stage")
    folder, tried = config.stage_folder("stage"), tmp_path / "tried"
    checkpoint = resolve_entry(config, "stage")
    run_distributed(elsewhere, 2, config, checkpoint, tried)
    assert json.loads((tried / "train/hearing.json").read_text())["train"]["overall"]["n"] == 5
    assert len((tried / "test/answers.jsonl").read_text().splitlines()) == 2
    assert not (folder / "hearing.json").exists() and not (folder / "measured.json").exists()
    assert json.loads((tried / "test/measured.json").read_text())["weights"] == checkpoint_digest(checkpoint)
    stamps = {name: (tried / name / "hearing.json").stat().st_mtime_ns for name in ("train", "test")}
    (tried / "test/answers.jsonl").unlink()  # as if it had been stopped between the two
    run_distributed(elsewhere, 1, config, checkpoint, tried)
    again = {name: (tried / name / "hearing.json").stat().st_mtime_ns for name in ("train", "test")}
    assert again["train"] == stamps["train"] and again["test"] > stamps["test"]
    other = trained_run(tmp_path, "other", seed=1)
    run_distributed(elsewhere, 1, config, resolve_entry(dataclasses.replace(other, stage="stage"), "stage"), tried)
    assert (tried / "train/hearing.json").stat().st_mtime_ns > again["train"], "of other weights"


def contrastive(rank: int, world_size: int, config: Config, output: Path | None) -> None:
    sets = {name: evaluation_rows(config, name) for name in ("train", "test")}
    measure_contrastive(config, sets, resolve_entry(config, "clap"), output)


@pytest.mark.slow
def test_a_contrastive_stage_is_measured_beside_or_as_its_own(tmp_path: Path) -> None:
    config = asked_run(tmp_path)
    for name in ("train", "test"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        said = [json.dumps(row | {"captions": [f"w{i}"]}) for i, row in enumerate(rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(said) + "\n")
    config = dataclasses.replace(config, stage="clap")
    folder = config.stage_folder("clap")
    run_distributed(contrastive, 2, config, tmp_path / "tried")
    assert json.loads((tmp_path / "tried/train/clap-train.json").read_text())["rows"] == 5
    assert not list(folder.glob("clap-*.json"))
    stamp = (tmp_path / "tried/train/clap-train.json").stat().st_mtime_ns
    (tmp_path / "tried/test/clap-test.json").unlink()  # as if it had been stopped between the two
    run_distributed(contrastive, 1, config, tmp_path / "tried")
    assert (tmp_path / "tried/train/clap-train.json").stat().st_mtime_ns == stamp, "measured already"
    assert (tmp_path / "tried/test/clap-test.json").is_file()
    run_distributed(contrastive, 1, config, None)
    assert Results.load(folder, checkpoint_digest(resolve_entry(config, "clap"))).metrics["test/rows"] == 2
