"""What is missing, told before anything begins."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import (
    Config,
    DataConfig,
    DatasetConfig,
    ImportConfig,
    NeighboursConfig,
    RetrievalConfig,
    StageConfig,
    WatchConfig,
)
from megatron_af.runs.presence import missing_at_the_head, missing_for_evaluation, missing_for_training


@pytest.fixture
def config(tmp_path: Path) -> Config:
    origin = ImportConfig(format="audio_flamingo", path="manifests/clotho.json", audio="audio")
    datasets = {
        "clotho": DatasetConfig(manifest="prepared/clotho", source="rows/clotho.jsonl", origin=origin),
        "captions": DatasetConfig(manifest="prepared/captions", source="rows/captions.jsonl"),
        "made": DatasetConfig(manifest="made.jsonl"),
        "unused": DatasetConfig(manifest="prepared/unused", source="rows/unused.jsonl"),
    }
    (tmp_path / "data").mkdir()
    return Config(
        name="toy",
        output=str(tmp_path / "runs"),
        data=DataConfig(
            root=str(tmp_path / "data"), datasets=datasets, tokenizer=str(tmp_path / "data/tokenizer.json")
        ),
        curriculum={
            "clap": StageConfig(objective="contrastive", blend={"captions": 1.0}),
            "align": StageConfig(
                blend={"clotho": 1.0, "made": 1.0},
                entry={"lm": "converted/qwen", "rows": "converted/qwen", "encoder": "clap"},
            ),
        },
    )


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_what_no_step_makes(config: Config, tmp_path: Path) -> None:
    data = tmp_path / "data"
    found = [problem.split(":")[0] for problem in missing_at_the_head(config)]
    assert found == [
        "curriculum.align.entry.lm = converted/qwen",
        "data.datasets.clotho.origin.path = manifests/clotho.json",
        "data.datasets.captions.source = rows/captions.jsonl",
    ], "the tokenizer and 'made' may be made below data.root, and nobody reads 'unused'"
    touch(data / "manifests/clotho.json")
    assert "data.datasets.clotho.origin.audio = audio" in "\n".join(missing_at_the_head(config))
    touch(data / "audio/1.wav")
    touch(data / "rows/captions.jsonl")
    assert [problem.split(":")[0] for problem in missing_at_the_head(config)] == found[:1]


def test_what_is_prepared_already_needs_no_source(config: Config, tmp_path: Path) -> None:
    for name in ("clotho", "captions"):
        touch(tmp_path / f"data/prepared/{name}/index.arrow")
        touch(tmp_path / f"data/prepared/{name}/index.jsonl")
    assert len(list(missing_at_the_head(config))) == 1


def test_a_tokenizer_from_elsewhere_must_be_there(config: Config, tmp_path: Path) -> None:
    elsewhere = replace(config, data=replace(config.data, tokenizer=str(tmp_path / "models/tokenizer")))
    assert any(problem.startswith("data.tokenizer = ") for problem in missing_at_the_head(elsewhere))
    hub = replace(config, data=replace(config.data, tokenizer="Qwen/Qwen2.5-3B"))
    assert not any(problem.startswith("data.tokenizer = ") for problem in missing_at_the_head(hub))


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        ({"cut": 3, "max_seconds": 1.0, "sample_rate": 16_000}, "holds the first 1 s of clips, 3 of which are longer"),
        ({"cut": 0, "max_seconds": 1.0, "sample_rate": 16_000}, ""),
        ({"cut": 3, "max_seconds": 30.0, "sample_rate": 16_000}, ""),
        ({"cut": 0, "max_seconds": 30.0, "sample_rate": 8_000}, "was prepared at 8,000 Hz"),
        ({}, ""),
    ],
)
def test_what_was_prepared_narrower_than_it_is_heard_is_refused(
    config: Config, tmp_path: Path, summary: dict[str, float], said: str
) -> None:
    touch(tmp_path / "data/prepared/captions/index.arrow")
    (tmp_path / "data/prepared/captions/prepared.json").write_text(json.dumps({"summary": summary}))
    problems = list(missing_for_training(replace(config, stage="clap")))
    told = [problem for problem in problems if problem.startswith("data.datasets.captions")]
    assert [said in problem and "prepare it again" in problem for problem in told] == [True] * bool(said)


def test_what_is_measured_narrower_than_it_is_heard_is_refused(config: Config, tmp_path: Path) -> None:
    touch(tmp_path / "data/prepared/captions/index.arrow")
    summary = {"cut": 3, "max_seconds": 1.0, "sample_rate": 16_000}
    (tmp_path / "data/prepared/captions/prepared.json").write_text(json.dumps({"summary": summary}))
    stage = replace(config.curriculum["clap"], blend={"clotho": 1.0}, evaluation=("captions",))
    config = replace(config, stage="clap", curriculum={**config.curriculum, "clap": stage})
    for problems in (missing_for_training(config), missing_for_evaluation(config)):
        assert any("data.datasets.captions" in p and "holds the first 1 s of clips" in p for p in problems)


def test_a_stage_hears_what_it_is_looked_at_by_and_what_rows_are_made_of(config: Config) -> None:
    knn = DatasetConfig(manifest="knn.jsonl", neighbours=NeighboursConfig(of="unused"))
    stage = StageConfig(
        blend={"knn": 1.0}, evaluation=("clotho",), watch=WatchConfig(dataset="made"), calibrate="development"
    )
    config = replace(
        config,
        data=replace(config.data, datasets={**config.data.datasets, "knn": knn}),
        curriculum={**config.curriculum, "tune": stage},
        retrieval=RetrievalConfig(stage="clap", datasets=("other",)),
    )
    assert config.hears("tune") == {"knn", "unused", "clotho", "made", "development"}
    assert config.hears("clap") == {"captions", "unused", "other"}
    assert config.hears("align") == {"clotho", "made"}
