"""Open sizes of a stage become numbers that the layout and the data can carry."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import (
    Config,
    ConfigError,
    DataConfig,
    DatasetConfig,
    NeighboursConfig,
    ParallelConfig,
    StageConfig,
)
from megatron_af.config.loading import load_config, to_yaml
from megatron_af.runs.check import check
from megatron_af.runs.sizes import batch_samples, most_clips, resolve_sizes, steps_of_passes

ROOT = Path(__file__).parents[2]
QUESTION = {"prompt": "what?", "output": "a dog"}


@pytest.mark.parametrize(
    ("max_windows", "tokens", "samples"),
    [(3, 192 + 512, 1024), (12, 768 + 512, 512), (30, 1920 + 512, 256)],
    ids=["30 s", "2 min", "5 min"],
)
def test_long_stages_take_fewer_samples_of_the_same_budget(max_windows: int, tokens: int, samples: int) -> None:
    """Audio Flamingo 2's stages on 16 data-parallel ranks, at the budget of stage 1."""
    config = Config(name="af2", parallel=ParallelConfig(tensor=2))
    stage = StageConfig(max_windows=max_windows, batch_tokens=1024 * 704, micro_batch_samples=1)
    assert config.sample_tokens(stage) == tokens
    assert batch_samples(config, stage, world_size=32) == samples
    assert samples % 16 == 0 and stage.batch_tokens * 5 / 6 - 16 * tokens < samples * tokens <= stage.batch_tokens


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


def record(config: Config, samples: int) -> None:
    """A checkpoint of the stage, as a run with that batch leaves it."""
    folder = config.stage_folder(config.stage) / "checkpoints"
    (folder / "step_00000001").mkdir(parents=True)
    stage = replace(config.curriculum[config.stage], global_batch_samples=samples)
    recorded = replace(config, curriculum={config.stage: stage})
    (folder / "step_00000001/config.yaml").write_text(to_yaml(recorded))
    (folder / "step_00000001/checkpoint.json").write_text("{}")
    (folder / "latest").write_text("step_00000001")


def test_a_resume_takes_the_batch_that_the_stage_began_with(tmp_path: Path) -> None:
    stage = StageConfig(max_windows=12, batch_tokens=1024 * 704, micro_batch_samples=1)
    config = Config(name="af2", output=str(tmp_path), stage="s", curriculum={"s": stage})
    record(config, 560)
    for ranks in (1, 8, 16, 35, 80):
        assert resolve_sizes(config, ranks).curriculum["s"].global_batch_samples == 560
    with pytest.raises(ConfigError, match=r"32 processes cannot share .*; start 28, 35, 40 processes"):
        resolve_sizes(config, 32)
    other = replace(config, curriculum={"s": replace(stage, batch_tokens=1024 * 700)})
    assert resolve_sizes(other, 32).curriculum["s"].global_batch_samples != 560, "another budget is another run"


@pytest.mark.parametrize("name", ["af2_0.5b", "af2_1.5b", "af2_3b"])
def test_the_shipped_runs_go_on_with_more_ranks(name: str) -> None:
    """Whoever begins on 8 to 64 of them may go on with any power of two up to 64: batches that are merely rounded to
    the ranks (560, 560, 544, 512) would keep most of them from it."""
    config = load_config(ROOT / f"configs/{name}.yaml")
    for stage in (stage for stage in config.curriculum.values() if stage.batch_tokens):
        began = {ranks: batch_samples(config, stage, ranks) for ranks in (8, 16, 32, 64)}
        assert not [(ranks, more) for ranks in began for more in began if began[ranks] % config.step_unit(stage, more)]
        full = stage.batch_tokens / config.sample_tokens(stage)
        assert all(samples >= 5 / 6 * full - config.step_unit(stage, ranks) for ranks, samples in began.items())


def test_a_sample_is_counted_with_all_its_clips_and_questions(tmp_path: Path) -> None:
    rows = [{"id": "a", "clips": [{"path": f"{n}.wav", "duration": 1} for n in range(5)], "questions": [QUESTION]}]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    datasets = {
        "many": DatasetConfig(manifest="many.jsonl"),
        "few-shot": DatasetConfig(manifest="f.jsonl", neighbours=NeighboursConfig(of="many", examples=7)),
    }
    config = Config(name="x", data=DataConfig(root=str(tmp_path), datasets=datasets))
    stage = StageConfig(max_windows=2, max_text_tokens=100, questions_per_sample=3, blend={"many": 1.0})
    window = config.model.encoder.tokens_per_window
    assert config.sample_tokens(stage) == 2 * window + 300
    assert most_clips(config, stage) == 5
    assert batch_samples(config, replace(stage, batch_tokens=2 * (10 * window + 300), micro_batch_samples=1), 1) == 2
    assert config.sample_tokens(replace(stage, blend={"few-shot": 1.0})) == 8 * 2 * window + 300


def test_without_budget_and_passes_nothing_changes() -> None:
    config = Config(name="x", stage="s", curriculum={"s": StageConfig(steps=7, global_batch_samples=6)})
    assert resolve_sizes(config, world_size=2) == config
