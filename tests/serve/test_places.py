"""A run, a stage, a checkpoint and a release are found for what they are, and what is none is said in one sentence."""

import dataclasses
import json
from pathlib import Path

import pytest

from megatron_af.config import Config, RetrievalConfig, StageConfig
from megatron_af.config.loading import to_yaml
from megatron_af.inference.requests import BadRequest
from megatron_af.serve.places import embedding_stage, find, run_name
from tests.data.toy import toy_config


def write_checkpoint(config: Config, stage: str, step: int = 1) -> Path:
    checkpoint = config.stage_folder(stage) / "checkpoints" / f"step_{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.yaml").write_text(to_yaml(dataclasses.replace(config, stage=stage)))
    (checkpoint / "checkpoint.json").write_text(json.dumps({"parts": {}, "resume": {"stage": stage}}))
    (checkpoint.parent / "latest").write_text(checkpoint.name)
    return checkpoint


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Stages in an order that is not the alphabet's: ``lm``, ``clap``, ``align``, ``tune``, of which clap embeds."""
    toy = toy_config(tmp_path, sizes=(1, 1))
    clap = StageConfig(objective="contrastive", blend={"a": 1.0})
    stages = {"lm": toy.curriculum["tune"], "clap": clap, "align": toy.curriculum["tune"], **toy.curriculum}
    return dataclasses.replace(toy, curriculum=stages)


def run_of(config: Config) -> Path:
    return Path(config.output) / config.name


def test_a_run_is_its_last_stage_that_answers(config: Config) -> None:
    write_checkpoint(config, "lm")
    newest = write_checkpoint(config, "clap")
    assert find(run_of(config))[0].stage == "lm", "what embeds does not answer"
    align = write_checkpoint(config, "align")
    assert find(run_of(config)) == (dataclasses.replace(config, stage="align"), align)
    config.stage_folder("tune").mkdir(parents=True)
    assert find(run_of(config))[0].stage == "align", "a stage without a checkpoint is not trained"
    assert embedding_stage(find(run_of(config))[0]) == (dataclasses.replace(config, stage="clap"), newest)


def test_a_run_without_an_answering_stage_embeds(config: Config) -> None:
    write_checkpoint(config, "clap")
    assert find(run_of(config))[0].stage == "clap"


def test_a_stage_is_its_newest_checkpoint_and_a_checkpoint_itself(config: Config) -> None:
    first, second = (write_checkpoint(config, "align", step) for step in (1, 2))
    assert find(config.stage_folder("align"))[1] == second
    found, checkpoint = find(first)
    assert (checkpoint, found.stage, found.name) == (first, "align", config.name)


def test_a_run_that_moved_is_found_where_it_lies_now(config: Config, tmp_path: Path) -> None:
    write_checkpoint(config, "align")
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    run_of(config).rename(moved)
    found, checkpoint = find(moved)
    assert checkpoint.is_relative_to(moved) and found.stage_folder("align") == moved / "align"


def test_a_release_is_a_run_of_its_own(config: Config, tmp_path: Path) -> None:
    release = tmp_path / "releases" / "3f2a"
    laid_out = dataclasses.replace(config, output=str(release.parent), name="3f2a")
    checkpoint = write_checkpoint(laid_out, "tune")
    (release / "config.yaml").write_text(to_yaml(dataclasses.replace(config, stage="tune")))
    (release / "tokenizer").mkdir()
    found, found_checkpoint = find(release)
    assert (found.stage, found_checkpoint) == ("tune", checkpoint)
    assert found.data.tokenizer == str(release / "tokenizer")
    assert (found.name, run_name(release, found)) == ("3f2a", config.name)
    for place in (run_of(config), checkpoint):
        assert run_name(place, found) == found.name


def test_what_cannot_be_loaded_is_said_in_one_sentence(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(config, "align")
    (config.stage_folder("tune") / "checkpoints").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    lifted, is_file, is_dir = Path("/step_00000001"), Path.is_file, Path.is_dir
    monkeypatch.setattr(Path, "is_file", lambda path: path.parent == lifted or is_file(path))
    monkeypatch.setattr(Path, "is_dir", lambda path: path == lifted or is_dir(path))
    bare = write_checkpoint(config, "lm")
    (bare / "config.yaml").unlink()
    for place, says in [
        (tmp_path / "gone", "expected the folder of a run, stage, checkpoint or release, got .*/gone: not there"),
        (tmp_path / "empty", "expected a run with a trained stage, got .*/empty: no stage in it has a checkpoint"),
        (config.stage_folder("tune"), "expected a trained stage, got .*/tune, which has no checkpoint yet"),
        (lifted, r"expected a checkpoint in its run, as RUN/STAGE/checkpoints/STEP, got /step_00000001"),
        (bare, r"expected a checkpoint that training wrote, got .*step_00000001, without config\.yaml"),
    ]:
        with pytest.raises(FileNotFoundError, match=says) as error:
            find(place)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("named", ["", "clap"])
def test_a_run_that_cannot_embed_says_so(config: Config, named: str) -> None:
    write_checkpoint(config, "align")
    config = dataclasses.replace(config, retrieval=RetrievalConfig(stage=named))
    says = "embed: expected a run with a trained AF-CLAP stage, got toy, which has clap without a checkpoint"
    with pytest.raises(BadRequest, match=says):
        embedding_stage(config)
    only = dataclasses.replace(config, curriculum={"align": config.curriculum["align"]}, retrieval=RetrievalConfig())
    with pytest.raises(BadRequest, match="which has none"):
        embedding_stage(only)


def test_layers_are_those_of_the_machine_that_loads(config: Config) -> None:
    checkpoint = write_checkpoint(dataclasses.replace(config, layers="te"), "align")
    assert find(checkpoint)[0].layers == ""
