"""The written YAML can be read, checks, and has the numbers that its data asks for."""

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import (
    ClapConfig,
    Config,
    EncoderConfig,
    FrontEndConfig,
    ImportConfig,
    LMConfig,
    ModelConfig,
    TransformConfig,
)
from megatron_af.config.loading import load_config
from megatron_af.prepare.advice import advise
from megatron_af.prepare.statistics import Statistics
from megatron_af.runs.check import check
from megatron_af.start.origin import ANSWERING, Begin
from megatron_af.start.recipe import write_recipe

LABELS = ImportConfig(format="labels", path="recordings")
TABLE = ImportConfig(
    format="csv", path="recordings/a: b.csv", columns={"audio": "{id}.wav", "caption": "first, one"}, audio="recordings"
)


def facts(rows: int = 3000, seconds: float = 0.6, captions: int = 9000) -> Statistics:
    return Statistics(
        name="train", rows=rows, looked_at=2, seconds=[seconds, seconds / 2], windows=[1, 1], tokens=[37, 30],
        captions=captions,
    )  # fmt: skip


def written(tmp_path: Path, origins: dict[str, ImportConfig], known: Statistics) -> Config:
    file = tmp_path / "mine.yaml"
    file.write_text(write_recipe("mine", tmp_path / "data", origins, known))
    config = load_config(file)
    assert check(config, config.launch.processes_per_node) == []
    return config


@pytest.mark.parametrize("name", ["123", "1e3", "true", "null", "no", "2026-01-02", "0x10"])
def test_names_that_yaml_takes_for_something_else_stay_names(tmp_path: Path, name: str) -> None:
    file = tmp_path / "mine.yaml"
    origin = ImportConfig(format="csv", path=f"recordings/{name}", columns={"audio": "file", "label": name})
    file.write_text(write_recipe(name, tmp_path / f"a: #{name}", {"all": origin}, facts()))
    config = load_config(file)
    assert (config.name, config.data.root) == (name, str(tmp_path / f"a: #{name}"))
    assert config.data.datasets["all"].origin == origin


@pytest.mark.parametrize(
    ("origins", "parts"),
    [
        ({"all": LABELS}, {"train": (0, 0.75), "development": (0.75, 0.85), "test": (0.85, 1)}),
        ({"all": TABLE}, {"train": (0, 0.75), "development": (0.75, 0.85), "test": (0.85, 1)}),
        ({"train": LABELS, "test": LABELS}, {"train": (0, 0.9), "development": (0.9, 1)}),
        ({"train": LABELS, "development": LABELS, "test": TABLE}, {"train": (0, 1)}),
    ],
    ids=["whole", "table", "divided", "divided in three"],
)
def test_every_division_has_what_trains_and_what_is_held_out(
    tmp_path: Path, origins: dict[str, ImportConfig], parts: dict[str, tuple[float, float]]
) -> None:
    config = written(tmp_path, origins, facts())
    sets = config.data.datasets
    assert {name: (s.part.begin, s.part.end) for name, s in sets.items() if s.part} == parts
    assert {"train", "development", "test"} <= set(sets) and sets["train"].manifest == "prepared/train"
    imported = {name: dataset.origin for name, dataset in sets.items() if dataset.origin}
    assert list(imported.values()) == list(origins.values())
    assert all(stage.evaluation == ("test",) for stage in config.curriculum.values())


def test_the_data_asks_for_nothing_else(tmp_path: Path) -> None:
    for known in (facts(), facts(200, 0.3), facts(100_000, 9.0), facts(500, 28.0)):
        config = written(tmp_path, {"all": LABELS}, known)
        windows = [item for item in advise(known, config) if "max_windows" not in item.key]
        assert windows == []
        assert (config.curriculum["clap"].augment is not None) == (known.rows <= 500)
    assert written(tmp_path, {"all": LABELS}, facts(seconds=28.0)).curriculum["clap"].max_windows == 3


def test_stages_are_long_enough_and_no_longer_than_minutes(tmp_path: Path) -> None:
    for rows in (30, 3_000, 1_000_000):
        stages = written(tmp_path, {"all": LABELS}, facts(rows)).curriculum
        assert 300 <= stages["clap"].steps <= 500 and 200 <= stages["answer"].steps <= 400
    assert list(stages) == ["clap", "answer"] and stages["answer"].entry == {"encoder": "clap"}


def test_without_a_caption_the_encoder_learns_with_the_answers(tmp_path: Path) -> None:
    config = written(tmp_path, {"all": TABLE}, facts(captions=0))
    assert list(config.curriculum) == ["answer"]
    assert config.curriculum["answer"].entry == {} and config.curriculum["answer"].frozen == ()


@pytest.mark.parametrize("captions", [9000, 0], ids=["through AF-CLAP", "answers alone"])
def test_a_trained_encoder_is_begun_with_as_it_was_trained(tmp_path: Path, captions: int) -> None:
    """Its sizes and windows are the recipe's, also where they are the project's defaults and not the demo's."""
    model = ModelConfig(
        front_end=FrontEndConfig(window_seconds=2.0),
        encoder=EncoderConfig(embed_dim=32, depths=(1, 1), heads=(2, 2), patch_size=16, classes=0, stft_weights=False),
    )
    checkpoint = tmp_path / "a run/clap/checkpoints/step_00000003"
    begin = Begin(origin=tmp_path / "a run", taken={"encoder": checkpoint}, model=model)
    file = tmp_path / "mine.yaml"
    file.write_text(write_recipe("mine", tmp_path / "data", {"all": LABELS}, facts(captions=captions), begin))
    config = load_config(file)
    assert check(config, 2) == []
    assert (config.model.encoder, config.model.front_end) == (model.encoder, model.front_end)
    first = next(iter(config.curriculum.values()))
    assert first.entry == {"encoder": str(checkpoint)} and config.model.lm.layers == 2
    assert ("clap" in config.curriculum) == bool(captions)
    if captions:
        assert config.curriculum["answer"].entry == {"encoder": "clap"}


@pytest.mark.parametrize("captions", [9000, 0], ids=["through AF-CLAP", "answers alone"])
@pytest.mark.parametrize(("words", "rows"), [(36, 128), (120, 192)])
def test_what_answers_is_begun_with_in_its_sizes(tmp_path: Path, captions: int, words: int, rows: int) -> None:
    """New words stand behind the old ones, in as many rows as there must be."""
    lm = LMConfig(hidden=64, layers=3, heads=4, kv_heads=2, ffn=96, vocab=100, max_positions=640)
    clap = ClapConfig(text_tower="", text_hidden=32, text_layers=1, text_heads=2, joint_dim=48)
    model = ModelConfig(lm=lm, clap=clap, transform=TransformConfig(layers=2, heads=2, ffn=64))
    taken = dict.fromkeys(("encoder", *ANSWERING), tmp_path / "long") | {"clap": tmp_path / "clap"}
    begin = Begin(origin=tmp_path / "release", taken=taken, model=model)
    file = tmp_path / "mine.yaml"
    file.write_text(
        write_recipe("mine", tmp_path / "data", {"all": LABELS}, facts(captions=captions), begin, words=words)
    )
    config = load_config(file)
    assert config.model == replace(model, lm=replace(lm, vocab=rows))
    stages, long = config.curriculum, str(tmp_path / "long")
    entry = dict.fromkeys(ANSWERING, long)
    assert stages["answer"].entry == entry | {"encoder": "clap" if captions else long}
    if captions:
        assert stages["clap"].entry == {"encoder": long, "clap": str(tmp_path / "clap")}


@pytest.mark.parametrize(("words", "rows"), [(36, 128), (116, 128), (117, 192), (5_000, 5504)])
def test_every_word_has_a_row_and_there_is_room_for_more(tmp_path: Path, words: int, rows: int) -> None:
    (tmp_path / "mine.yaml").write_text(
        write_recipe("mine", tmp_path / "data", {"all": LABELS}, facts(), words=words)
    )
    assert load_config(tmp_path / "mine.yaml").model.lm.vocab == rows
