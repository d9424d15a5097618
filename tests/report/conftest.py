"""A run that was trained and measured, as it lies on disk: steps, gates, scores, answers, looks, times, an index."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_af.config import Config, StageConfig
from megatron_af.config.loading import to_yaml
from megatron_af.evaluate.classes import by_class
from megatron_af.evaluate.hearing import Asked, answer_lines, summarise
from megatron_af.inference.looks import Look, write_looks
from megatron_af.pipeline.records import DONE, Launch, RunFolder, StepRecord
from megatron_af.retrieval.catalogue import read_catalogue
from megatron_af.retrieval.index import NeighbourIndex
from megatron_af.runs.paths import LATEST, MANIFEST, SETTINGS
from megatron_af.runs.records import StageRecord
from megatron_af.tracking.runs import stage_spool
from megatron_af.tracking.spool import Spool
from tests.data.toy import toy_config, write_manifest
from tests.retrieval.toy import write_rows

STEPS = 40


@pytest.fixture
def run(tmp_path: Path) -> Config:
    """Stage ``align`` without an evaluation, and ``long``, measured on ``test``; ``train`` has an index."""
    toy = toy_config(tmp_path, sizes=(1, 1))
    root = Path(toy.data.root)
    rows = {name: write_rows(root, name, 12) for name in ("train", "test")}
    datasets = {name: write_manifest(root, name, of) for name, of in rows.items()}
    config = replace(
        toy,
        name="<odd> & run",
        output=str(tmp_path / "runs"),
        data=replace(toy.data, datasets=datasets),
        tracking=replace(toy.tracking, enabled=False),
        curriculum={
            "align": StageConfig(blend={"train": 1.0}, max_windows=1),
            "long": StageConfig(blend={"train": 1.0}, max_windows=2, entry={"all": "align"}, evaluation=("test",)),
        },
    )
    for number, stage in enumerate(config.curriculum):
        _train(replace(config, stage=stage), began=1e9 + 100 * number)
    asked = [
        Asked(
            row=row.id, skill="what", prompt=row.questions[0].prompt, wanted="a" if number % 2 else "b",
            heard="a" if number < 9 else "</script><b>", exchanged="b", options=("a", "b"),
        )
        for number, row in enumerate(rows["test"])
    ]  # fmt: skip
    folder = config.stage_folder("long")
    (folder / "answers.jsonl").write_text("\n".join(answer_lines("test", asked)) + "\n")
    (folder / "hearing.json").write_text(json.dumps({"test": summarise(asked) | {"classes": by_class(asked)}}))
    (folder / "clap-test.json").write_text(json.dumps({"rows": 12, "zero_shot": {"accuracy": 61.25}}))
    published = [{"model": "<AF2>", "metric": "exact", "value": 83.9, "source": "x", "distance": -12.7}]
    suite = {"n": 2000, "too_long": 0, "exact": 71.25, "intervals": {"exact": [69.1, 73.0]}, "published": published}
    (folder / "suite-esc50.json").write_text(json.dumps(suite))
    ranked = {"rows": 7, "zero_shot": {"accuracy": 50.5}, "intervals": {"zero_shot/accuracy": [40.0, 60.0]}}
    (folder / "suite-us8k.json").write_text(json.dumps(ranked))
    seconds_L = np.tile(np.arange(4) * 0.25, 2)
    look = Look(
        prompt="what is it?\nOPTIONS:\n - a.", tokens=("a", "<end>"), seconds=1.0, row="test-0",
        weights_TL=np.full((2, 8), 1 / 8), token_seconds_L=seconds_L,
    )  # fmt: skip
    write_looks([look], folder / "pictures/attention-test.json")
    catalogue = read_catalogue(config, "train")
    vectors = np.random.default_rng(0).standard_normal((len(catalogue.key_P), 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    at = Path(config.output) / config.name / "retrieval" / "train"
    at.parent.mkdir()
    NeighbourIndex.make(catalogue, vectors, at, {"encoder": "one"})
    return config


def _train(config: Config, began: float) -> None:
    """What training ``config.stage`` leaves."""
    folder, inputs = config.stage_folder(config.stage), {"data/train": f"sha256:{config.stage}"}
    checkpoint = folder / "checkpoints" / f"step_{STEPS:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / MANIFEST).write_text(json.dumps({"resume": {"stage": config.stage, "step": STEPS}, "parts": {}}))
    (checkpoint / SETTINGS).write_text(to_yaml(config))
    (checkpoint.parent / LATEST).write_text(checkpoint.name)
    StageRecord(inputs=inputs, done=True, seconds=90.0).save(folder)
    (folder / "result.json").write_text(json.dumps({"step": STEPS, "mfu": 0.125, "tokens_per_second": 1234.0}))
    spool = Spool(stage_spool(config, config.stage, inputs))
    for step in range(1, STEPS + 1):
        gates = {f"gate_{kind}/{layer}": (layer - 1) * step / 100 for kind in ("attn", "ffn") for layer in range(3)}
        times = {"step_seconds": 0.5, "data_wait": 0.125, "watched/loss": 2.0, "chance_loss": 2.3}
        spool.metrics(step, {"loss": 3 / step, "loss/train": 2 / step, **gates, **times})
    launch = Launch(run="r")
    record = StepRecord(step=config.stage, launch=launch, reads="", state=DONE, started=began, ended=began + 90)
    RunFolder(config).write_step(record)
