"""The data bench on a small stream: it measures all paths, and our order of them holds."""

import json
from pathlib import Path

import pytest

from megatron_af.bench import data
from megatron_af.data.shards import BATCH_ROWS
from tools.bench import main


def test_the_bench_measures_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SECONDS", [2.0, 3.5, 5.0, 6.0, 7.5, 9.0, 24.0, 41.0])
    monkeypatch.setattr(data, "INDEX_ROWS", 100 * BATCH_ROWS)
    out = tmp_path / "bench.json"
    assert main(["data", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    cost = result["cost"]
    assert set(cost) == {"reference", "unprepared", "prepared", "floor"} and cost["prepared"] < cost["unprepared"]
    assert cost["unprepared"] < cost["reference"]
    ours, reference = result["padding"]["windows"]
    assert ours == 0 and reference > 0.5
    index = result["index"]
    assert index["rows"] == 100 * BATCH_ROWS and index["open, seconds"] < 2 and index["resident, MB"] < 200
    assert result["clips"] == 8 and result["commit"]


def test_the_references_mel_is_the_streams() -> None:
    """The restated reference computes what the parity tests hold DALI to."""
    from tests.dali_pipes.reference import mel_filters

    front_end = data.FrontEndConfig()
    # Float32 knows the highest point (2,840 mel) to 2.4e-4 mel, 1.9 mHz of a triangle 300 Hz wide; so does torchaudio.
    assert (data._mel_filters(front_end) - mel_filters(front_end)).abs().max() < 1.9e-3 / 300 + 1e-6
