"""Watched rows are measured when they should be, and training is the same to the last bit as without them."""

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import Config, WatchConfig
from megatron_af.runs.check import check
from megatron_af.train.callbacks import Callback, Record, format_line
from megatron_af.train.trainer import Trainer
from tests import contrastive_run, tiny
from tests.data.toy import toy_config, toy_rows, write_manifest
from tests.distributed import run_distributed

STEPS = 5


def run(folder: Path, watch: WatchConfig) -> Config:
    toy, small = toy_config(folder), tiny.config()
    for name in toy.data.datasets:  # what both objectives can learn from
        rows = [row for row in toy_rows(Path(toy.data.root), name, 12) if len(row.clips) == 1]
        write_manifest(Path(toy.data.root), name, rows)
    encoder = replace(small.model.encoder, drop_path=0.2)
    lm = replace(small.model.lm, vocab=257, max_positions=512)
    stage = replace(
        small.curriculum["stage"], blend={"a": 1.0}, steps=STEPS, global_batch_samples=4, frozen=("encoder.bn0.*",),
        watch=watch,
    )  # fmt: skip
    model = replace(small.model, encoder=encoder, lm=lm, front_end=toy.model.front_end, clap=contrastive_run.CLAP)
    tracking = replace(toy.tracking, enabled=False)
    return replace(toy, model=model, curriculum={"tune": stage}, tracking=tracking, log_every_steps=1)


class Records(Callback):
    def __init__(self) -> None:
        self.all: list[Record] = []

    def on_step(self, trainer: Trainer, record: Record) -> None:
        self.all.append(dict(record))


def train(rank: int, world_size: int, config: Config) -> list[Record]:
    records = Records()
    with Trainer(config, [records]) as trainer:
        assert trainer.train() == "done"
    return records.all


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["answer", "contrastive"])
def test_development_rows_are_looked_at_and_change_nothing(tmp_path: Path, objective: str) -> None:
    config = run(tmp_path, WatchConfig(dataset="b", every_steps=2, samples=6))
    stage = replace(config.curriculum["tune"], objective=objective)
    stage = stage if objective == "answer" else replace(stage, trainable=("*",), max_windows=3)
    config = replace(config, curriculum={"tune": stage})
    assert check(config, 2) == []
    watched = run_distributed(train, 2, replace(config, name="watched"))[0]
    plain = run_distributed(
        train, 2, replace(config, name="plain", curriculum={"tune": replace(stage, watch=WatchConfig())})
    )[0]
    for key in ("loss", "grad_norm"):
        assert [record[key] for record in watched] == [record[key] for record in plain]
    seen = {int(record["step"]): record["watched/loss"] for record in watched if "watched/loss" in record}
    assert list(seen) == [2, 4, 5] and len(set(seen.values())) == 3 and all(loss > 0 for loss in seen.values())
    assert not any(name.startswith("watched/") for record in plain for name in record)
    sure = [record.get("watched/sure") for record in watched if "watched/loss" in record]
    assert sure == ([None] * 3 if objective == "contrastive" else [0.0] * 3), "five steps make nobody sure"


def test_rows_that_are_learnt_from_are_no_rows_to_watch(tmp_path: Path) -> None:
    for dataset, said in (("a", "the stage learns from it"), ("c", "watch.dataset = c: not in data.datasets")):
        problems = check(run(tmp_path, WatchConfig(dataset=dataset)), 1)
        assert any(said in problem for problem in problems)


def test_the_log_line_says_how_it_goes() -> None:
    record = {"step": 2.0, "loss": 0.5, "chance_loss": 0.7, "watched/loss": 0.6, "watched/sure": 0.25}
    assert "| loss 0.5000 | chance 0.7000 | watched 0.6000 | sure 25.0% | grad" in format_line(record, 4)
    assert "chance" not in format_line({"step": 2.0, "loss": 0.5}, 4)
