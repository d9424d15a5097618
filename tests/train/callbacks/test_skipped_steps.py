"""Steps without a finite gradient are told of and counted, over a restart as well, and end the run when they go on."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_af.train.callbacks import Record
from megatron_af.train.callbacks.skipped_steps import MAX_SKIPPED_IN_A_ROW, SkippedSteps
from megatron_af.train.optimizer import NonFiniteGradient


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def step(callback: SkippedSteps, grad_norm: float, number: int, skipped: int) -> Record:
    trainer: Any = SimpleNamespace(
        step=number, skipped=skipped, rank=0, world_size=1, folder=Path(), config=SimpleNamespace(stage="tune")
    )
    batch: Any = SimpleNamespace(sample_ids=("a-1", "[b]"))
    record = {"loss": 1.0, "grad_norm": grad_norm}
    callback.on_batch(trainer, batch, waited=0.0)
    callback.on_step(trainer, record)
    return record


def test_a_skipped_step_is_told_with_its_samples(capsys: pytest.CaptureFixture[str]) -> None:
    assert "skipped" not in step(SkippedSteps(), 1.0, number=1, skipped=0)
    assert capsys.readouterr().out == ""
    assert step(SkippedSteps(), math.nan, number=2, skipped=1)["skipped"] == 1.0
    told = capsys.readouterr().out
    assert "stage tune, step 2: the gradient is not finite" in told and "a-1, [b]" in told
    (line,) = Path("skipped.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "step": 2, "why": "not finite", "loss": "1.0", "samples": [["a-1", "[b]"]]
    }  # fmt: skip


def test_a_step_that_is_trained_again_after_a_restart_is_told_once() -> None:
    for number in (2, 3, 2, 3, 4):
        step(SkippedSteps(), math.nan, number=number, skipped=1)
    assert [json.loads(line)["step"] for line in Path("skipped.jsonl").read_text().splitlines()] == [2, 3, 4]


@pytest.mark.parametrize("restart", [False, True])
def test_too_many_in_a_row_end_the_run(restart: bool) -> None:
    callback = SkippedSteps()
    for number in range(1, MAX_SKIPPED_IN_A_ROW):
        step(callback, math.inf, number, skipped=number)
    if restart:
        state = json.loads(json.dumps(callback.state_dict()))
        callback = SkippedSteps()
        callback.load_state_dict(state)
    with pytest.raises(NonFiniteGradient, match=r"It is step 5 of its kind in a row.*learning_rate"):
        step(callback, math.nan, MAX_SKIPPED_IN_A_ROW, skipped=MAX_SKIPPED_IN_A_ROW)


def test_a_good_step_begins_the_count_anew() -> None:
    callback = SkippedSteps()
    for number in range(1, 3 * MAX_SKIPPED_IN_A_ROW):
        step(callback, 1.0 if number % MAX_SKIPPED_IN_A_ROW == 0 else math.nan, number, skipped=number)
