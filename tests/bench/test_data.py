"""The data bench on a small stream: what each path does, and what becomes of the seconds it took."""

import json
from pathlib import Path

import pytest

from megatron_af.bench import data
from megatron_af.data.shards import BATCH_ROWS
from tools.bench import main

SECONDS = [2.0, 3.5, 5.0, 6.0, 7.5, 9.0, 24.0, 41.0]
WINDOWS = [1, 1, 1, 1, 1, 1, 3, 5]


@pytest.mark.slow
def test_the_bench_measures_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All paths do the stream's work, the reference with its padding; the clock is ours."""
    monkeypatch.setattr(data, "SECONDS", SECONDS)
    monkeypatch.setattr(data, "INDEX_ROWS", 100 * BATCH_ROWS)
    made, seconds = [], iter([8.0, 4.0, 2.0, 1.0])

    def once(work):
        made.append(work())
        return next(seconds)

    monkeypatch.setattr(data, "_processor_seconds", once)
    out = tmp_path / "bench.json"
    assert main(["data", "--json", str(out)]) == 0

    (reference,), (unprepared,), (prepared,), floor = made
    assert len(reference) == 8 * max(WINDOWS) and len(floor) == sum(WINDOWS)
    for batch in (unprepared, prepared):
        assert sorted(batch.audio.clip_windows) == WINDOWS and len(batch.audio.mel_WFM) == sum(WINDOWS)
    loud = prepared.audio.mel_WFM > -60  # below, 16 bits and the resampler's filter speak
    assert (unprepared.audio.mel_WFM - prepared.audio.mel_WFM)[loud].abs().median() < 0.1

    result = json.loads(out.read_text())
    cost = {"reference": 8000 / 98, "unprepared": 4000 / 98, "prepared": 2000 / 98, "floor": 1000 / 98}
    assert result["cost"] == pytest.approx(cost) and result["audio_seconds"] == pytest.approx(98)
    ratios = {"prepared / reference": 0.25, "unprepared / reference": 0.5, "prepared / floor": 2.0}
    assert result["ratios"] == pytest.approx(ratios)
    ours, theirs = result["padding"]["windows"]
    assert ours == 0 and theirs == 1 - sum(WINDOWS) / (8 * max(WINDOWS))
    index = result["index"]
    assert index["rows"] == 100 * BATCH_ROWS and index["open, seconds"] > 0 and index["resident, MB"] < 200
    assert result["clips"] == 8 and result["commit"]
    printed = capsys.readouterr().out
    verdicts = {name: line for line in printed.splitlines() for name in ratios if f"│ {name} " in line}
    assert {name: "MISSED" in line for name, line in verdicts.items()} == {
        "prepared / reference": False, "unprepared / reference": False, "prepared / floor": True,
    }  # fmt: skip


def test_the_better_of_two_runs_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, runs = iter([10.0, 13.0, 20.0, 21.5]), []
    monkeypatch.setattr(data.time, "process_time", lambda: next(clock))
    assert data._processor_seconds(lambda: runs.append(1)) == 1.5
    assert len(runs) == 2


def test_the_references_mel_is_the_streams() -> None:
    """The restated reference computes what the parity tests hold DALI to."""
    from tests.dali_pipes.reference import mel_filters

    front_end = data.FrontEndConfig()
    # Float32 knows the highest point (2,840 mel) to 2.4e-4 mel, 1.9 mHz of a triangle 300 Hz wide; so does torchaudio.
    assert (data._mel_filters(front_end) - mel_filters(front_end)).abs().max() < 1.9e-3 / 300 + 1e-6
