"""The inputs of a stage: what changes its weights changes a digest, nothing else does."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import BoundsConfig, Config, DataConfig, DatasetConfig, StageConfig
from megatron_af.runs.identity import checkpoint_digest, stage_inputs
from megatron_af.runs.paths import LATEST, MANIFEST


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "scenes.jsonl").write_text("{}\n")
    return Config(
        name="demo",
        output=str(tmp_path / "runs"),
        data=DataConfig(root=str(tmp_path), datasets={"scenes": DatasetConfig(manifest="scenes.jsonl")}),
        curriculum={
            "lm": StageConfig(),
            "align": StageConfig(entry={"lm": "lm"}, blend={"scenes": 1.0}),
        },
    )


def write_checkpoint(config: Config, stage: str, weights: str) -> Path:
    folder = config.stage_folder(stage) / "checkpoints"
    checkpoint = folder / "step_00000001"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / MANIFEST).write_text(json.dumps({}))
    (checkpoint / "weights").write_text(weights)
    (folder / LATEST).write_text(checkpoint.name)
    return checkpoint


def with_align(config: Config, **changes: object) -> Config:
    return replace(config, curriculum={**config.curriculum, "align": replace(config.curriculum["align"], **changes)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        (lambda c: replace(c, seed=1), {"config"}),
        (lambda c: with_align(c, steps=7), {"config"}),
        (lambda c: with_align(c, evaluation=("clotho",), exit_gate={"loss": BoundsConfig(max=1.0)}), set()),
        (lambda c: replace(c, parallel=replace(c.parallel, tensor=2)), set()),
        (lambda c: replace(c, log_every_steps=1), set()),
    ],
    ids=["seed", "steps", "evaluation", "layout", "logging"],
)
def test_what_matters_moves_a_digest(config: Config, change: Callable[[Config], Config], moved: set[str]) -> None:
    write_checkpoint(config, "lm", "1")
    before, after = stage_inputs(config, "align"), stage_inputs(change(config), "align")
    assert {name for name in before | after if before.get(name) != after.get(name)} == moved


def test_data_and_parent_are_inputs(config: Config, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(config, "lm", "1")
    before = stage_inputs(config, "align")
    assert set(before) == {"config", "data/scenes", "parent/lm"}
    (tmp_path / "scenes.jsonl").write_text("{}\n{}\n")
    checkpoint.rename(checkpoint.with_name("old"))
    write_checkpoint(config, "lm", "2")
    after = stage_inputs(config, "align")
    assert {name for name in before if before[name] != after[name]} == {"data/scenes", "parent/lm"}


def test_a_checkpoint_is_digested_once(config: Config) -> None:
    checkpoint = write_checkpoint(config, "lm", "1")
    digest = checkpoint_digest(checkpoint)
    (checkpoint / "weights").write_text("2")
    assert checkpoint_digest(checkpoint) == digest, "recorded when the checkpoint was complete"


def test_what_is_missing_is_named_by_its_key(config: Config, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"curriculum\.align\.entry"):
        stage_inputs(config, "align")
    write_checkpoint(config, "lm", "1")
    (tmp_path / "scenes.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"data\.datasets\.scenes\.manifest"):
        stage_inputs(config, "align")
    with pytest.raises(KeyError, match="'musiccaps'"):
        stage_inputs(with_align(config, blend={"musiccaps": 1.0}), "align")
