"""A stage's record comes back, and what is put aside never takes the place of what others point at."""

from pathlib import Path

import pytest

from megatron_af.runs import records
from megatron_af.runs.records import StageRecord, checkpoints_in, put_aside


def test_a_record_comes_back(tmp_path: Path) -> None:
    assert StageRecord.load(tmp_path) is None
    record = StageRecord(inputs={"data": "sha256:1"}, done=True, checkpoint="step_1", digest="sha256:2", seconds=1.5)
    record.save(tmp_path)
    assert StageRecord.load(tmp_path) == record


def stage(folder: Path, mark: str) -> Path:
    checkpoint = folder / "checkpoints/step_1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint.json").write_text("{}")
    (folder / "mark").write_text(mark)
    return checkpoint


def marks(run: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in run.glob("*/mark")}


@pytest.mark.parametrize("pointed", [False, True])
def test_one_older_result_is_kept_and_all_that_are_pointed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pointed: bool
) -> None:
    run = tmp_path / "runs/demo"
    monkeypatch.setattr(
        records, "is_pointed_at", lambda place, output: pointed and output == (tmp_path / "runs").resolve()
    )
    for mark in ("first", "second", "third"):
        stage(run / "align", mark)
        put_aside(run / "align")
        assert not (run / "align").exists()
    kept = {"align.replaced": "third"}
    if pointed:
        kept = {"align.replaced": "first", "align.replaced-2": "second", "align.replaced-3": "third"}
    assert marks(run) == kept


def test_only_complete_checkpoints_are_found(tmp_path: Path) -> None:
    whole = stage(tmp_path / "align", "x")
    (tmp_path / "align/checkpoints/step_2").mkdir()
    assert checkpoints_in(tmp_path / "align") == [whole.resolve()]
