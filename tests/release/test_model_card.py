"""A card holds the numbers of the exported weights, and of no others."""

import json
from pathlib import Path

import pytest

from megatron_af.config import Config, StageConfig
from megatron_af.config.loading import to_yaml
from megatron_af.release.model_card import model_card
from megatron_af.runs.bundle import make_release
from megatron_af.runs.paths import LATEST, MANIFEST
from megatron_af.runs.pointers import checkpoint_digest
from megatron_af.runs.results import HEARING, bind_results
from megatron_af.serve.places import find

SCORES = {"test": {"overall": {"n": 40, "audio": 61.25}, "skills": {"what": {"n": 40, "audio": None}}}}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run of three stages, the last of which starts from the first."""
    stages = {
        "clap": StageConfig(objective="contrastive"),
        "other": StageConfig(),
        "long": StageConfig(blend={"clotho": 2.0}, steps=70, trainable=("lm.*",), entry={"encoder": "clap"}),
    }
    config = Config(name="demo", output=str(tmp_path / "runs"), curriculum=stages, stage="long")
    checkpoint = config.stage_folder("long") / "checkpoints/step_00000070"
    checkpoint.mkdir(parents=True)
    resume = {"stage": "long", "step": 70, "skipped": 0, "samples": 560, "world_size": 1}
    (checkpoint / MANIFEST).write_text(json.dumps({"resume": resume, "parts": {"lm": "."}}))
    (checkpoint / "config.yaml").write_text(to_yaml(config))
    (checkpoint.parent / LATEST).write_text(checkpoint.name)
    hearing = config.stage_folder("long") / HEARING
    hearing.write_text(json.dumps(SCORES))
    bind_results(config, [hearing])
    return config


def card_of(place: Path) -> str:
    config, checkpoint = find(place)
    return model_card(config, checkpoint, place, "flamingo")


def test_it_tells_stages_lineage_and_evaluation_of_a_release(config: Config) -> None:
    release = make_release(config, "long")
    card = card_of(release)
    assert "# flamingo\n" in card and "up to 30 s" in card
    assert "| long | answer | clotho × 2 | 70 | `lm.*` |" in card
    assert "| clap |" in card and "| other |" not in card
    assert "Stage `long` after 70 steps and 560 samples." in card
    assert f"| lm | `{checkpoint_digest(release / 'long/checkpoints/step_00000070')}` |" in card
    assert "### test\n\n| skill | n | audio |\n|---|---|---|\n| what | 40 | – |\n| overall | 40 | 61.25 |" in card


def test_numbers_of_other_weights_are_left_out(config: Config) -> None:
    release = make_release(config, "long")
    measured = config.stage_folder("long") / "measured.json"
    values = json.loads(measured.read_text())
    measured.write_text(json.dumps(values | {"weights": "sha256:another"}))
    assert "None of these weights was found." in card_of(release) and "61.25" not in card_of(release)


def test_a_run_that_was_not_released_has_a_card_too(config: Config) -> None:
    assert "61.25" in card_of(Path(config.output) / config.name)
