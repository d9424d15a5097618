"""The log line."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dali_pipes import mel
from megatron_af.config import Config
from megatron_af.parallel import device as device_module
from megatron_af.parallel.device import Device
from megatron_af.train.callbacks import log_line
from megatron_af.train.callbacks.log_line import LogLine, format_line


def test_log_line_shows_everything_in_one_line() -> None:
    record = {
        "step": 120.0,
        "loss": 1.23456,
        "grad_norm": 0.5,
        "learning_rate": 1e-4,
        "tokens_per_second": 12_345.6,
        "audio_seconds_per_second": 88.25,
        "mfu": 0.412,
        "data_wait": 0.004,
        "memory_bytes": 3 * 2**30,
        "eta_seconds": 3_725.0,
    }
    assert format_line(record, 5_000) == (
        "step 120/5000 2.4% | loss 1.2346 | grad 0.500 | lr 1.00e-04 | tok/s 12,346 | audio-s/s 88.2 | mfu 41.2% | "
        "data-wait 0.4% | mem 3.00 GiB | eta 1:02:05"
    )


def test_log_line_counts_the_steps_that_were_skipped() -> None:
    line = format_line({"step": 4.0, "loss": float("nan"), "skipped": 2.0}, 8)
    assert line.startswith("step 4/8 50.0% | skipped 2 | loss – |")


def test_log_line_says_by_data_set_how_many_questions_were_too_long() -> None:
    too_long = {"too_long/clotho": 12.0, "too_long/audioset": 3.0, "too_long/a": 0.0}
    line = format_line({"step": 4.0, "loss": 1.0, **too_long}, 8)
    assert line.startswith("step 4/8 50.0% | too long clotho 12 | too long audioset 3 | loss 1.0000 |")


def test_unknown_numbers_are_dashes() -> None:
    line = format_line({"step": 1.0, "loss": 2.0}, 10)
    assert "tok/s –" in line and "eta –" in line


@pytest.mark.parametrize(
    ("where", "asked", "problem", "told"),
    [
        ("cuda:0", "", "is not installed", True),
        ("cuda:0", "", "", False),
        ("cuda:0", "torch", "is not installed", False),
        ("cpu", "", "is not installed", False),
    ],
)
def test_a_gpu_with_torchs_layers_is_told_once(
    where: str,
    asked: Any,
    problem: str,
    told: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(device_module, "transformer_engine_problem", lambda: problem)
    monkeypatch.setattr(log_line, "table", lambda counts, stage: "")
    for rank in (0, 1):
        config = Config(name="toy", stage="align", layers=asked)
        trainer: Any = SimpleNamespace(rank=rank, counts={}, config=config, device=Device(torch.device(where)))
        LogLine(1).on_start(trainer)
    assert capsys.readouterr().out.count("Transformer Engine is not installed: layers are torch's") == told


def test_a_torch_mel_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(mel, "dali_problem", lambda: "ImportError: gone")
    monkeypatch.setattr(log_line, "table", lambda counts, stage: "")
    config = Config(name="toy", stage="align")
    LogLine(1).on_start(
        SimpleNamespace(rank=0, counts={}, config=config, device=Device(torch.device("cpu")))  # type: ignore[arg-type]
    )
    assert "DALI cannot be used (ImportError: gone): torch makes the mel" in capsys.readouterr().out
