"""Rates over the last steps, without warm-up and without what happens between steps."""


import pytest

from megatron_af.train.callbacks import meter
from megatron_af.train.callbacks.meter import Meter
from tests.train.callbacks.measured import BATCH, measured, stand_in


def test_warm_up_has_no_rates() -> None:
    assert measured(Meter.WARMUP_STEPS) == {"memory_bytes": 7.0}


def test_pauses_and_warm_up_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: clock[0])
    watch, record = Meter(), {}
    for step in range(1, 11):
        clock[0] += 0.5  # waiting for the batch
        watch.on_batch(stand_in(step), BATCH, waited=0.5)
        clock[0] += 100.0 if step <= Meter.WARMUP_STEPS else 1.5
        record = {}
        watch.on_step(stand_in(step), record)
        clock[0] += 1_000 if step == 5 else 0.1  # a checkpoint is written, a line logged
    assert record["step_seconds"] == pytest.approx(2)
    assert record["tokens_per_second"] == pytest.approx(5)
    assert record["audio_seconds_per_second"] == pytest.approx(2)
    assert record["data_wait"] == pytest.approx(0.25)
    assert record["flops_per_second"] == pytest.approx(3)
    assert record["mfu"] == pytest.approx(3)
    assert record["eta_seconds"] == 0
