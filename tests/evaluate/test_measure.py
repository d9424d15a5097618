"""One command measures a stage, with and without examples."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_af.config import DatasetConfig, RetrievalConfig
from megatron_af.config.loading import to_yaml
from tests.data.toy import write_tone
from tests.decoder.test_toy_family import tool_run
from tests.train import test_trainer as tool
from tests.trained_run import trained_run


@pytest.mark.slow
def test_one_command_measures_with_and_without_examples(tmp_path: Path) -> None:
    config = trained_run(tmp_path)
    for name, count in (("train", 5), ("test", 2)):
        rows = []
        for i in range(count):
            write_tone(tmp_path / f"{name}/{i}.wav", 2.0, 10 * i + len(name))
            question = {"prompt": "w5 w7", "output": f"w{i}"}
            clip = {"path": f"{name}/{i}.wav", "duration": 2.0}
            rows.append(json.dumps({"id": f"{name}-{i}", "clips": [clip], "questions": [question]}))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    stages = {
        "clap": dataclasses.replace(config.curriculum["clap"], blend={"train": 1.0}),
        "stage": dataclasses.replace(config.curriculum["stage"], blend={"train": 1.0}, evaluation=("test",)),
    }
    datasets = {name: DatasetConfig(manifest=f"{name}.jsonl") for name in ("train", "test")}
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, datasets=datasets),
        curriculum=stages,
        retrieval=RetrievalConfig(stage="clap", datasets=("train",)),
    )
    top = tmp_path / "top.yaml"
    top.write_text(to_yaml(config))
    tool_run("tools/build_retrieval.py", "index", "--config", str(top))
    run = ["tools/evaluate_hearing.py", "--config", str(top), "stage=stage"]
    tool_run(*run)
    folder = tmp_path / "runs/tiny/stage"
    alone = (folder / "hearing.json").read_text(), (folder / "answers.jsonl").read_text()
    two = [sys.executable, "-m", "megatron_af.pipeline.torchrun", "--standalone", "--nproc_per_node", "2"]
    shots = [*two, str(tool.ROOT / run[0]), *run[1:3], "--shots", "2,4", "--from", "train", *run[3:]]
    done = subprocess.run(shots, env=tool.environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "4 shots" in done.stdout and "examples from train" in done.stdout
    assert alone == ((folder / "hearing.json").read_text(), (folder / "answers.jsonl").read_text()), "of 0 shots"
    for number in (2, 4):
        found = json.loads((folder / f"few_shot/{number}_from_train/hearing.json").read_text())["test"]["overall"]
        assert (found["n"], found["too_long"], found["cut_short"]) == (2, 0, 0)

    more = [*run[:3], "--shots", "6", "--from", "train", *run[3:]]
    refused = subprocess.run(
        [sys.executable, *more], env=tool.environment(), cwd=tool.ROOT, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("6 examples were asked for: train has 5 recordings")
