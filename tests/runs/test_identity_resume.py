"""What may change between a checkpoint and the run that goes on from it, and what may not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_af.config import Config, ConfigError, DataConfig, DatasetConfig, StageConfig
from megatron_af.config.loading import load_config, to_yaml
from megatron_af.runs.identity import check_resume

STAGE = StageConfig(blend={"scenes": 1.0}, entry={"lm": "lm"}, trainable=("lm.*",))
CONFIG = Config(
    name="demo",
    data=DataConfig(
        root="data", tokenizer="t.json", datasets={n: DatasetConfig(manifest=n) for n in ("scenes", "text")}
    ),
    curriculum={"align": STAGE, "tune": StageConfig()},
    stage="align",
)


def changed(tmp_path: Path, *overrides: str) -> list[str]:
    """What a run with these overrides would have to set back."""
    (tmp_path / "config.yaml").write_text(to_yaml(CONFIG))
    (tmp_path / "now.yaml").write_text(to_yaml(CONFIG))
    try:
        check_resume(load_config(tmp_path / "now.yaml", overrides), tmp_path)
    except ConfigError as error:
        assert "another name=" in str(error)
        return list(error.problems)
    return []


@pytest.mark.parametrize(
    ("key", "was", "now"),
    [
        ("seed", 0, 7),
        ("precision", "bf16", "fp32"),
        ("model.lm.layers", 36, 24),
        ("model.front_end.hop_samples", 160, 320),
        ("model.encoder.drop_path", 0.1, 0.2),
        ("data.tokenizer", "t.json", "u.json"),
        ("data.text_style", "af2", "af1"),
        ("data.datasets.scenes.manifest", "scenes", "others"),
        ("curriculum.align.blend.scenes", 1.0, 2.0),
        ("curriculum.align.entry.lm", "lm", "tune"),
        ("curriculum.align.objective", "answer", "contrastive"),
        ("curriculum.align.global_batch_samples", 8, 16),
        ("curriculum.align.questions_per_sample", 1, 3),
        ("curriculum.align.max_windows", 3, 12),
        ("curriculum.align.optimizer.learning_rate", 1e-4, 5e-5),
        ("curriculum.align.optimizer.schedule", "constant", "cosine"),
    ],
)
def test_what_samples_or_updates_follow_from_must_be_as_it_was(key: str, was: Any, now: Any, tmp_path: Path) -> None:
    assert changed(tmp_path, f"{key}={now}") == [f"{key}: was {was}, now {now}"]


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "output=elsewhere",
        "stage=align",
        "curriculum.align.steps=500",
        "curriculum.align.passes=2",
        "curriculum.align.micro_batch_samples=1",
        "curriculum.align.pack_tokens=2048",
        "curriculum.align.exit_gate.loss.max=1",
        "curriculum.tune.max_windows=1",
        "parallel.tensor=2",
        "parallel.recompute=full",
        "model.encoder.recompute=true",
        "data.root=moved",
        "data.datasets.text.manifest=other",
        "checkpoint.every_steps=7",
        "log_every_steps=1",
        "tracking.enabled=false",
    ],
)
def test_what_lies_on_the_machines_or_behind_the_training_may_change(override: str, tmp_path: Path) -> None:
    assert changed(tmp_path, override) == []


def test_all_differences_are_named_at_once(tmp_path: Path) -> None:
    both = changed(tmp_path, "seed=1", "curriculum.align.blend.scenes=2")
    assert [problem.partition(":")[0] for problem in both] == ["curriculum.align.blend.scenes", "seed"]


def test_a_budget_is_compared_and_not_the_batch_that_follows_from_it(tmp_path: Path) -> None:
    budgeted = replace(CONFIG, curriculum={"align": replace(STAGE, batch_tokens=9_999, global_batch_samples=8)})
    (tmp_path / "config.yaml").write_text(to_yaml(budgeted))
    check_resume(replace(CONFIG, curriculum={"align": replace(STAGE, batch_tokens=9_999)}), tmp_path)
    with pytest.raises(ConfigError, match="batch_tokens: was 9999, now 8888"):
        check_resume(replace(CONFIG, curriculum={"align": replace(STAGE, batch_tokens=8_888)}), tmp_path)


def test_a_checkpoint_without_settings_is_no_place_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config\.yaml"):
        check_resume(CONFIG, tmp_path)
