"""Where checkpoints lie and what they say of themselves, or the one sentence that says what is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import Config, StageConfig, WatchConfig
from megatron_af.runs.paths import (
    BEST,
    LATEST,
    MANIFEST,
    CheckpointError,
    ended_early,
    latest,
    outcome,
    read_manifest,
    read_result,
    read_resume,
    replaced,
    resolve_entry,
)

RESUME = {"stage": "align", "step": 3, "skipped": 0, "samples": 24, "world_size": 2}


def checkpoint(folder: Path, name: str, **parts: str) -> Path:
    made = folder / name
    made.mkdir(parents=True)
    (made / "checkpoint.json").write_text(json.dumps({"parts": parts or {"lm": "."}, "resume": RESUME}))
    return made


def test_the_newest_is_the_one_pointed_at(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    first, second = checkpoint(tmp_path, "step_1"), checkpoint(tmp_path, "step_2")
    (tmp_path / "latest").write_text("step_1\n")
    assert latest(tmp_path) == first
    (tmp_path / "latest").write_text("step_2")
    assert latest(tmp_path) == second and read_resume(second) == RESUME


def test_a_checkpoint_that_another_one_was_about_to_replace_still_counts(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, "step_1")
    (tmp_path / "latest").write_text("step_1")
    whole.rename(replaced(whole))
    assert latest(tmp_path) == replaced(whole) != whole
    (tmp_path / "step_1").mkdir()  # its successor, not complete
    assert latest(tmp_path) == replaced(whole)


def test_a_pointer_to_nothing_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("step_9")
    with pytest.raises(CheckpointError, match=r"step_9, which holds no checkpoint\.json; .* or delete it"):
        latest(tmp_path)


def test_an_entry_is_a_stage_or_a_path(tmp_path: Path) -> None:
    curriculum = {"align": StageConfig(), "tune": StageConfig()}
    config = Config(name="x", output=str(tmp_path), curriculum=curriculum, stage="tune")
    with pytest.raises(FileNotFoundError, match=r"tune starts from stage align, .*run stage=align first or"):
        resolve_entry(config, "align")
    with pytest.raises(FileNotFoundError, match=r"^stage tune has no checkpoint in .*; run stage=tune first$"):
        resolve_entry(config, "tune")
    folder = config.stage_folder("align") / "checkpoints"
    made = checkpoint(folder, "step_1")
    (folder / "latest").write_text("step_1")
    assert resolve_entry(config, "align") == made
    assert resolve_entry(config, "some/where") == Path("some/where")
    assert resolve_entry(replace(config, curriculum={"tune": StageConfig()}), "align") == Path("align")


def test_a_folder_that_is_no_checkpoint_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a checkpoint folder with checkpoint\.json, got .*`entry`"):
        read_resume(tmp_path)
    assert read_manifest(checkpoint(tmp_path, "step_1", lm="."))["parts"] == {"lm": "."}


def test_the_last_numbers_are_those_written_at_the_end(tmp_path: Path) -> None:
    assert read_result(tmp_path) == {}
    (tmp_path / "result.json").write_text('{"loss": 0.5}')
    assert read_result(tmp_path) == {"loss": 0.5}


def test_what_a_stage_came_to_is_its_best_where_it_looks_for_it(tmp_path: Path) -> None:
    watching = StageConfig(watch=WatchConfig(dataset="d", best="loss"))
    config = Config(name="x", output=str(tmp_path), curriculum={"a": watching, "b": StageConfig()})
    for stage in config.curriculum:
        assert outcome(config, stage) is None
        folder = config.stage_folder(stage) / "checkpoints"
        older, newer = (checkpoint(folder, f"step_{step:08d}") for step in (1, 2))
        (folder / LATEST).write_text(newer.name)
        assert outcome(config, stage) == newer, "none was the best yet"
        (folder / BEST).write_text(older.name)
    assert outcome(config, "a") == older.parents[2] / "a/checkpoints" / older.name
    assert outcome(config, "b") == newer and resolve_entry(config, "a") == outcome(config, "a")
    (config.stage_folder("a") / "checkpoints" / BEST).write_text("step_00000009")
    with pytest.raises(CheckpointError, match=r"checkpoints/best names step_00000009, which holds no checkpoint\.json"):
        outcome(config, "a")


def test_a_stage_has_ended_early_where_its_patience_is_used_up(tmp_path: Path) -> None:
    told = checkpoint(tmp_path, "step_00000005")
    resume = {"step": 5, "callbacks": {"Watch": {"without_better": 3}}}
    (told / MANIFEST).write_text(json.dumps({"resume": resume, "parts": {}}))
    patience = {patience: StageConfig(watch=WatchConfig(patience=patience)) for patience in (0, 3, 4)}
    assert [ended_early(stage, told) for stage in patience.values()] == [False, True, False]
    (told / MANIFEST).write_text(json.dumps({"resume": {"step": 5}, "parts": {}}))
    assert not ended_early(patience[3], told)
