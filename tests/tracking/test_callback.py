"""A stage in MLflow, by what its spool is told: rank 0 alone, no step twice, every end in MLflow's words."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_af.config import Config, TrackingConfig
from megatron_af.tracking import callback
from megatron_af.tracking.callback import MLflowTracking


class Run:
    """In place of a tracked run and its spool: remembers."""

    def __init__(self, last_step: int = -1) -> None:
        self.told: list[Any] = []
        self.spool = SimpleNamespace(
            last_step=lambda: last_step,
            metrics=lambda step, values: self.told.append((step, values)),
            append=lambda kind, **values: self.told.append((kind, values)),
        )

    def end(self, status: str, reason: str) -> None:
        self.told.append((status, reason))


def start(monkeypatch: pytest.MonkeyPatch, run: Run, *, rank: int = 0, enabled: bool = True, gpu: bool = False) -> Any:
    started: list[dict[str, Any]] = []

    def start_stage_run(config: Config, **settings: Any) -> Run:
        started.append(settings)
        return run

    monkeypatch.setattr(callback, "start_stage_run", start_stage_run)
    device = SimpleNamespace(is_gpu=gpu, name="NVIDIA H100")
    trainer = SimpleNamespace(rank=rank, world_size=16, device=device)
    tracking = MLflowTracking(Config(name="x", tracking=TrackingConfig(enabled=enabled)))
    tracking.on_start(trainer)  # type: ignore[arg-type]
    return tracking, trainer, started


def test_only_rank_0_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    tracking, trainer, started = start(monkeypatch, run, rank=1)
    tracking.on_step(trainer, {"step": 1.0, "loss": 2.0})
    tracking.on_checkpoint(trainer, Path("nowhere"))
    tracking.on_end(trainer, "done")
    assert started == run.told == []


def test_a_run_that_nobody_follows_keeps_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    tracking, trainer, _ = start(monkeypatch, run, enabled=False)
    tracking.on_step(trainer, {"step": 1.0, "loss": 2.0})
    tracking.on_end(trainer, "done")
    assert run.told == [(1, {"loss": 2.0}), ("FINISHED", "done")]


def test_the_run_names_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start(monkeypatch, Run(), gpu=True)[2] == [{"gpus": "16 x NVIDIA H100", "world_size": 16}]
    assert start(monkeypatch, Run())[2] == [{"gpus": "", "world_size": 16}]


def test_steps_that_are_trained_again_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(last_step=2)
    tracking, trainer, _ = start(monkeypatch, run)
    for step in (1, 2, 3):
        tracking.on_step(trainer, {"step": float(step), "loss": 0.5})
    assert run.told == [(3, {"loss": 0.5})]


def test_a_checkpoint_is_told_by_its_step_and_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = Run()
    tracking, trainer, _ = start(monkeypatch, run)
    monkeypatch.setattr(callback, "read_resume", lambda path: {"step": 40})
    monkeypatch.chdir(tmp_path)
    tracking.on_checkpoint(trainer, Path("step_00000040"))
    assert run.told == [("checkpoint", {"step": 40, "path": str(tmp_path / "step_00000040")})]


@pytest.mark.parametrize(
    ("reason", "status"), [("done", "FINISHED"), ("stopped", "KILLED"), ("a gate", "FAILED"), ("", "FAILED")]
)
def test_every_end_has_mlflows_word_and_comes_once(monkeypatch: pytest.MonkeyPatch, reason: str, status: str) -> None:
    run = Run()
    tracking, trainer, _ = start(monkeypatch, run)
    tracking.on_end(trainer, reason)
    tracking.on_end(trainer, "done")
    assert run.told == [(status, reason)]
