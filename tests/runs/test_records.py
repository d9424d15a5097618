"""A stage's record comes back, and what is put aside never takes the place of what others point at."""

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import Config, ConfigError, DataConfig, DatasetConfig, StageConfig
from megatron_af.config.loading import to_yaml
from megatron_af.runs import records
from megatron_af.runs.identity import stage_inputs
from megatron_af.runs.records import StageRecord, checkpoints_in, claim, put_aside


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


def test_a_folder_is_claimed_for_one_run(tmp_path: Path) -> None:
    rows = tmp_path / "a.jsonl"
    rows.write_text("{}\n")
    config = Config(
        name="demo",
        stage="align",
        output=str(tmp_path / "runs"),
        data=DataConfig(root=str(tmp_path), datasets={"a": DatasetConfig(manifest="a.jsonl")}),
        curriculum={"align": StageConfig(blend={"a": 1.0})},
    )
    folder = config.stage_folder("align")
    claim(config)
    claim(replace(config, seed=1))  # nothing lies there yet
    claimed = StageRecord.load(folder)
    assert claimed is not None and claimed.inputs == stage_inputs(replace(config, seed=1), "align")
    claim(config)
    checkpoint = stage(folder, "x")
    (checkpoint / "config.yaml").write_text(to_yaml(config))
    (checkpoint.parent / "latest").write_text(checkpoint.name)
    claim(config)
    with pytest.raises(ConfigError, match="seed: was 0, now 1"):
        claim(replace(config, seed=1))
    rows.write_text("{}\n{}\n")
    with pytest.raises(ConfigError, match="data/a: other files than those it was trained with"):
        claim(config)
