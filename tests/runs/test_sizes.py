"""Open sizes of a stage become numbers that the layout and the data can carry."""

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import Config, DataConfig, DatasetConfig, ParallelConfig, StageConfig
from megatron_af.runs.check import check
from megatron_af.runs.sizes import batch_samples, resolve_sizes, steps_of_passes


@pytest.mark.parametrize(
    ("max_windows", "tokens", "samples"),
    [(3, 192 + 512, 1024), (12, 768 + 512, 560), (30, 1920 + 512, 288)],
    ids=["30 s", "2 min", "5 min"],
)
def test_long_stages_take_fewer_samples_of_the_same_budget(max_windows: int, tokens: int, samples: int) -> None:
    """Audio Flamingo 2's stages on 16 data-parallel ranks, at the budget of stage 1."""
    config = Config(name="af2", parallel=ParallelConfig(tensor=2))
    stage = StageConfig(max_windows=max_windows, batch_tokens=1024 * 704, micro_batch_samples=1)
    assert config.sample_tokens(stage) == tokens
    assert batch_samples(config, stage, world_size=32) == samples
    assert samples % 16 == 0 and stage.batch_tokens - 16 * tokens < samples * tokens <= stage.batch_tokens


def test_interleaved_schedules_get_whole_groups_of_micro_batches() -> None:
    config = Config(name="af2", parallel=ParallelConfig(pipeline=4, virtual_pipeline=3))
    stage = StageConfig(max_windows=30, batch_tokens=1024 * 704, micro_batch_samples=2)
    samples = batch_samples(config, stage, world_size=16)
    resolved = replace(stage, batch_tokens=0, global_batch_samples=samples)
    assert samples % (4 * 2 * 4) == 0
    problems = check(replace(config, stage="x", curriculum={"x": resolved}), world_size=16)
    assert not [problem for problem in problems if "global_batch_samples" in problem]


def test_passes_are_steps_over_the_weighted_data(tmp_path: Path) -> None:
    for name, rows in (("clotho", 300), ("musiccaps", 100)):
        (tmp_path / f"{name}.jsonl").write_text('{"id": "a"}\n' * rows)
    stage = StageConfig(blend={"clotho": 1.0, "musiccaps": 2.0}, passes=2, global_batch_samples=8)
    config = Config(
        name="x",
        stage="s",
        curriculum={"s": stage, "other": StageConfig(steps=7)},
        data=DataConfig(
            root=str(tmp_path),
            datasets={name: DatasetConfig(manifest=f"{name}.jsonl") for name in ("clotho", "musiccaps")},
        ),
    )
    resolved = resolve_sizes(config, world_size=1)
    assert resolved.curriculum["s"].steps == 2 * (300 + 2 * 100) // 8
    assert resolved.curriculum["other"] == config.curriculum["other"]
    assert steps_of_passes(replace(stage, passes=1e-6), {"clotho": 1, "musiccaps": 1}) == 1


def test_without_budget_and_passes_nothing_changes() -> None:
    config = Config(name="x", stage="s", curriculum={"s": StageConfig(steps=7, global_batch_samples=6)})
    assert resolve_sizes(config, world_size=2) == config
