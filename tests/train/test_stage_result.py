"""The numbers a stage ends with."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_af.runs.paths import read_result
from megatron_af.train.stage_result import StageResult


def follow(folder: Path, rank: int, reason: str) -> dict[str, float]:
    trainer: Any = SimpleNamespace(rank=rank, folder=folder)
    callback = StageResult()
    for step in range(1, 101):
        callback.on_step(trainer, {"step": float(step), "loss": float(step), **({"mfu": 0.5} if step < 81 else {})})
    callback.on_end(trainer, reason)
    return read_result(folder)


def test_the_last_steps_are_averaged(tmp_path: Path) -> None:
    assert follow(tmp_path, rank=0, reason="done") == {"step": 100.0, "loss": pytest.approx(90.5)}


def test_what_the_very_last_step_lacks_is_told_of_those_before(tmp_path: Path) -> None:
    """An exit gate may name a data set that the last batch holds no sample of."""
    trainer: Any = SimpleNamespace(rank=0, folder=tmp_path)
    callback = StageResult()
    callback.on_step(trainer, {"step": 1.0, "loss": 3.0, "loss/rare": 4.0, "gate_attn/0": 0.5})
    callback.on_step(trainer, {"step": 2.0, "loss": 1.0, "loss/rare": 2.0})
    callback.on_step(trainer, {"step": 3.0, "loss": 2.0})
    callback.on_end(trainer, "done")
    assert read_result(tmp_path) == {"step": 3.0, "loss": 2.0, "loss/rare": 3.0, "gate_attn/0": 0.5}


def test_steps_that_were_skipped_are_counted_and_not_averaged(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(rank=0, folder=tmp_path)
    callback = StageResult()
    callback.on_step(trainer, {"step": 1.0, "loss": 3.0})
    callback.on_step(trainer, {"step": 2.0, "loss": float("nan"), "skipped": 1.0})
    callback.on_end(trainer, "done")
    assert read_result(tmp_path) == {"step": 2.0, "loss": 3.0, "skipped": 1.0}


def test_what_is_counted_over_the_run_is_as_the_last_step_tells_it(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(rank=0, folder=tmp_path)
    callback = StageResult()
    for step, lost in enumerate((0.0, 2.0, 5.0), start=1):
        callback.on_step(trainer, {"step": float(step), "loss": 3.0, "too_long/a": lost, "too_long/b": 0.0})
    callback.on_end(trainer, "done")
    assert read_result(tmp_path) == {"step": 3.0, "loss": 3.0, "too_long/a": 5.0, "too_long/b": 0.0}


def test_what_it_saw_before_a_restart_counts(tmp_path: Path) -> None:
    """A run whose last checkpoint is of its last step still gets its result when it is started again."""
    trainer: Any = SimpleNamespace(rank=0, folder=tmp_path)
    first, second = StageResult(), StageResult()
    for step in (1, 2):
        first.on_step(trainer, {"step": float(step), "loss": float(step)})
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.on_end(trainer, "done")
    assert read_result(tmp_path) == {"step": 2.0, "loss": 1.5}


@pytest.mark.parametrize(("rank", "reason"), [(1, "done"), (0, "failed"), (0, "stopped")])
def test_only_rank_0_and_only_at_the_end(tmp_path: Path, rank: int, reason: str) -> None:
    assert follow(tmp_path, rank, reason) == {}
