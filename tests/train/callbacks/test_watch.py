"""Watched rows are measured when they should be, and training is the same to the last bit as without them."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_af.config import CheckpointConfig, Config, StageConfig, WatchConfig
from megatron_af.runs.check import check
from megatron_af.runs.paths import ended_early, latest, outcome, resolve_entry
from megatron_af.train.callbacks import Callback, Record, format_line
from megatron_af.train.callbacks.watch import Watch
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


def looked_at(
    watch: WatchConfig, values: list[float], state: dict[str, Any] | None = None, suspicious: tuple[int, ...] = ()
) -> tuple[Any, list[int]]:
    """A stage whose watched loss and share of sure answers are these, one look a step; the steps that were best."""
    trainer: Any = SimpleNamespace(
        stage=StageConfig(watch=watch, steps=99), best_step=-1, enough=False, rank=0, step=0, suspicious=False
    )
    callback, best = Watch(Config(name="x"), None), []  # type: ignore[arg-type]
    callback._batches = [None]  # type: ignore[list-item]
    if state:
        callback.load_state_dict(state)
    callback._go_on(trainer)
    for value in values:
        if trainer.enough:
            break
        trainer.step += 1
        trainer.suspicious = trainer.step in suspicious
        trainer.learner = SimpleNamespace(measure=lambda batch, value=value: {"loss": value, "sure": value})
        callback.on_step(trainer, {})
        if trainer.best_step == trainer.step:
            best.append(trainer.step)
    trainer.state = callback.state_dict()
    return trainer, best


def test_the_best_is_the_lowest_loss_or_the_most_sure_answers(capsys: pytest.CaptureFixture[str]) -> None:
    every = WatchConfig(dataset="b", every_steps=1)
    values = [3.0, 2.0, 2.0, 2.5, 1.0, 4.0]
    assert looked_at(replace(every, best="loss"), values)[1] == [1, 2, 5]
    assert looked_at(replace(every, best="sure"), values)[1] == [1, 6]
    assert looked_at(every, values)[1] == []
    trainer, _ = looked_at(replace(every, best="loss", patience=2), values)
    assert trainer.enough and trainer.step == 4
    said = capsys.readouterr().out
    assert "step 4: 2 looks at b without a better loss than 2 at step 2: the stage ends here (watch.patience)" in said


def test_what_no_checkpoint_is_written_of_is_not_the_best() -> None:
    """While the loss of training has left its course (``SaveEvery``)."""
    watch = WatchConfig(dataset="b", every_steps=1, best="loss", patience=3)
    trainer, best = looked_at(watch, [3.0, 1.0, 2.0], suspicious=(2,))
    state = {"best": 2.0, "best_step": 3, "without_better": 0, "measure": ["b", "loss", 64]}
    assert best == [1, 3] and trainer.state == state


def test_patience_goes_on_over_a_restart_and_can_be_raised() -> None:
    watch = WatchConfig(dataset="b", every_steps=1, best="loss", patience=3)
    stopped, _ = looked_at(watch, [2.0, 3.0, 3.0])
    assert not stopped.enough
    resumed, best = looked_at(watch, [2.5, 1.0], stopped.state)
    assert resumed.enough and best == [], "the third look in a row, and 2.5 is no better than 2"
    assert not looked_at(watch, [2.0, 3.0, 1.0, 3.0, 3.0])[0].enough, "looks are counted from the best one"
    again, _ = looked_at(watch, [1.0], resumed.state)
    assert again.enough and again.step == 0, "it has ended already"
    longer, best = looked_at(replace(watch, patience=5), [1.0], resumed.state)
    assert not longer.enough and best == [1]


@pytest.mark.parametrize("changes", [{"best": "sure"}, {"dataset": "c"}, {"samples": 128}])
def test_what_was_best_of_another_measure_is_not_compared(tmp_path: Path, changes: dict[str, Any]) -> None:
    """All of it may change while a stage goes on: no share of sure answers is above a loss of 2."""
    watch = WatchConfig(dataset="b", every_steps=1, best="loss", patience=2)
    ended, _ = looked_at(watch, [2.0, 3.0, 3.0])
    other = replace(watch, **changes)
    resumed, best = looked_at(other, [0.25, 0.25], ended.state)
    assert best == [1] and not resumed.enough
    (tmp_path / "checkpoint.json").write_text(json.dumps({"resume": {"callbacks": {"Watch": ended.state}}}))
    assert ended_early(StageConfig(watch=watch), tmp_path)
    assert not ended_early(StageConfig(watch=other), tmp_path)
    old = {name: value for name, value in ended.state.items() if name != "measure"}
    assert looked_at(other, [0.25], old)[0].enough, "checkpoints of before do not say of what"


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_is_what_the_stage_came_to(tmp_path: Path) -> None:
    """The watched loss falls, then the rate is far too high and it rises; the stage ends early, at its third look."""
    config = run(tmp_path, WatchConfig(dataset="b", every_steps=1, samples=4, best="loss", patience=2))
    stage = replace(config.curriculum["tune"], steps=40)
    optimizer = replace(stage.optimizer, learning_rate=0.3, warmup_steps=0)
    stages = {"tune": replace(stage, optimizer=optimizer)}
    config = replace(config, curriculum=stages, checkpoint=CheckpointConfig(keep=1))
    records = run_distributed(train, 2, config)[0]
    losses = [record["watched/loss"] for record in records]
    best = losses.index(min(losses)) + 1
    assert len(losses) == best + 2 < 40
    folder = config.stage_folder("tune") / "checkpoints"
    newest, kept = latest(folder), outcome(config, "tune")
    assert newest is not None and kept is not None and ended_early(config.curriculum["tune"], newest)
    assert (newest.name, kept.name) == (f"step_{best + 2:08d}", f"step_{best:08d}")
    assert sorted(path.name for path in folder.glob("step_*")) == [kept.name, newest.name]
    assert resolve_entry(config, "tune") == kept
    assert run_distributed(train, 2, config)[0] == [], "it is done"
    settings = replace(config.curriculum["tune"], watch=WatchConfig(dataset="b"))
    assert outcome(replace(config, curriculum={"tune": settings}), "tune") == newest
    assert not ended_early(settings, newest)


def test_what_is_not_watched_cannot_be_best(tmp_path: Path) -> None:
    config = run(tmp_path, WatchConfig(best="loss"))
    assert any("watch.best = loss: nothing is watched" in problem for problem in check(config, 1))
    config = run(tmp_path, WatchConfig(dataset="b", patience=3))
    assert any("watch.patience = 3: needs curriculum.tune.watch.best" in problem for problem in check(config, 1))
    config = run(tmp_path, WatchConfig(dataset="b", best="sure"))
    stage = replace(config.curriculum["tune"], objective="contrastive", trainable=("*",))
    problems = check(replace(config, curriculum={"tune": stage}), 1)
    assert any("watch.best = sure: the objective contrastive says no answers" in problem for problem in problems)
