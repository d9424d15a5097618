"""A release holds everything of a model, and nothing that training changes later changes it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_af.config import Config, DataConfig, RetrievalConfig, StageConfig
from megatron_af.config.loading import load_config
from megatron_af.retrieval.encoder import encoder_digest
from megatron_af.runs.bundle import CONFIG, make_release
from megatron_af.runs.calibration import calibrate, read_calibration
from megatron_af.runs.digests import DigestMismatch, digest_tree, verify_digest
from megatron_af.runs.paths import LATEST, MANIFEST, latest
from megatron_af.runs.pointers import checkpoint_digest, source_of, verify
from megatron_af.serve.places import find
from tests.convert.toy_clap import write_clap
from tests.hub import hub_cache


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run whose stage ``long`` takes its encoder from ``clap`` and its language model from outside of the run."""
    (tmp_path / "tokenizer.json").write_text("{}")
    config = Config(
        name="demo",
        output=str(tmp_path / "runs"),
        data=DataConfig(tokenizer=str(tmp_path / "tokenizer.json")),
        curriculum={"clap": StageConfig(), "long": StageConfig()},
    )
    checkpoints = {name: config.stage_folder(name) / "checkpoints/step_00000002" for name in config.curriculum}
    write(checkpoints["clap"], {"encoder": "."}, "clap weights")
    write(tmp_path / "checkpoints/qwen/step_00000000", {"lm": "."}, "lm weights")
    parts = {
        "encoder": "../../../clap/checkpoints/step_00000002",
        "lm": "../../../../../checkpoints/qwen/step_00000000",
        "xattn": ".",
    }
    write(checkpoints["long"], parts, "long weights")
    for checkpoint in checkpoints.values():
        (checkpoint.parent / LATEST).write_text(checkpoint.name)
    return config


def write(checkpoint: Path, parts: dict[str, str], weights: str) -> None:
    checkpoint.mkdir(parents=True)
    (checkpoint / MANIFEST).write_text(json.dumps({"resume": {"step": 2}, "parts": parts}))
    (checkpoint / "weights.distcp").write_text(weights)


def weights(release: Path, part: str) -> str:
    released = load_config(release / CONFIG)
    checkpoint = latest(release / released.stage / "checkpoints")
    assert checkpoint is not None
    source = source_of(checkpoint, part)
    assert release.resolve() in source.resolve().parents, "nothing outside is needed"
    return (source / "weights.distcp").read_text()


def test_it_stands_on_its_own(config: Config, tmp_path: Path) -> None:
    release = make_release(config, "long")
    moved = tmp_path / "elsewhere"
    for folder in ("clap", "long"):
        shutil.rmtree(config.stage_folder(folder))
    shutil.rmtree(tmp_path / "checkpoints")
    release.rename(moved)
    verify_digest(moved)
    found = [weights(moved, part) for part in ("encoder", "lm", "xattn")]
    assert found == ["clap weights", "lm weights", "long weights"]
    assert (moved / "tokenizer/tokenizer.json").read_text() == "{}"
    for manifest in moved.rglob(MANIFEST):  # by whoever loads the weights
        verify(manifest.parent)


def test_how_sure_it_must_be_goes_along_and_is_part_of_what_is_released(config: Config) -> None:
    plain, folder = make_release(config, "long"), config.stage_folder("long")
    for least in (0.5, 0.7):
        checkpoint = latest(folder / "checkpoints")
        assert checkpoint is not None
        found = calibrate("development", checkpoint_digest(checkpoint), [least], [True], np.eye(2, dtype=np.float32))
        assert found is not None
        found.write(folder)
        release = make_release(config, "long")
        released, at = find(release)
        assert release != plain
        carried = read_calibration(released.stage_folder("long"), checkpoint_digest(at))
        assert carried == replace(found, weights=checkpoint_digest(at)) and carried.vectors_ND.shape == (2, 2)
    replace(found, weights="sha256:others").write(folder)
    assert make_release(config, "long") == plain, "that of other weights is none"


def test_a_released_checkpoint_is_the_original_to_the_last_byte(config: Config) -> None:
    """What names its weights by digest finds them in the release, so that an index of them still fits."""
    original = config.stage_folder("long") / "checkpoints/step_00000002"
    manifest = json.loads((original / MANIFEST).read_text())
    manifest["digests"] = {part: checkpoint_digest(source_of(original, part)) for part in ("encoder", "lm")}
    (original / MANIFEST).write_text(json.dumps(manifest))
    release = make_release(config, "long")
    shutil.rmtree(config.stage_folder("clap"))
    assert weights(release, "encoder") == "clap weights" and weights(release, "lm") == "lm weights"
    assert digest_tree(release / "long/checkpoints/step_00000002") == digest_tree(original)


def test_the_same_checkpoint_is_one_release_without_space_of_its_own(config: Config) -> None:
    release = make_release(config, "long")
    assert make_release(config, "long") == release
    original = config.stage_folder("long") / "checkpoints/step_00000002/weights.distcp"
    copy = release / "long/checkpoints/step_00000002/weights.distcp"
    assert copy.stat().st_ino == original.stat().st_ino
    assert json.loads((original.parent / MANIFEST).read_text())["parts"]["lm"].startswith("../../../../.."), "untouched"


@pytest.mark.parametrize("stage", ["clap", "long"])
def test_changed_files_are_not_released(config: Config, stage: str) -> None:
    shutil.rmtree(make_release(config, "long").parent)
    (config.stage_folder(stage) / "checkpoints/step_00000002/weights.distcp").write_text("other weights")
    with pytest.raises(DigestMismatch, match=stage):
        make_release(config, "long")
    assert not list((Path(config.output) / "demo/releases").glob("*"))


def test_another_checkpoint_than_the_one_meant_is_not_released(config: Config) -> None:
    with pytest.raises(DigestMismatch, match="sha256:0000"):
        make_release(config, "long", "sha256:0000")


def test_a_stage_without_checkpoint_is_named(config: Config) -> None:
    shutil.rmtree(config.stage_folder("long"))
    with pytest.raises(FileNotFoundError, match="stage long has no checkpoint"):
        make_release(config, "long")


def test_what_came_from_the_hub_goes_along(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "hub"
    hub_cache(cache, "org/lm", {"tokenizer.json": "{}", "tokenizer_config.json": "{}"})
    hub_cache(cache, "org/tower", {"config.json": "{}", "model.safetensors": "weights"})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    clap = replace(config.curriculum["clap"], objective="contrastive")
    model = replace(config.model, clap=replace(config.model.clap, text_tower="org/tower"))
    data = replace(config.data, tokenizer="org/lm")
    hub = replace(config, data=data, model=model, curriculum={**config.curriculum, "clap": clap})
    release = make_release(hub, "clap")
    shutil.rmtree(cache)
    assert (release / "tokenizer/tokenizer.json").read_text() == "{}"
    assert (release / "text_tower/model.safetensors").read_text() == "weights"
    assert not [file for file in release.rglob("*") if file.is_symlink()]
    found, _ = find(release)
    assert found.data.tokenizer == str(release / "tokenizer")
    assert found.model.clap.text_tower == str(release / "text_tower")
    with pytest.raises(FileNotFoundError, match=r"org/nowhere is no folder|org/nowhere"):
        make_release(replace(hub, name="demo", data=replace(hub.data, tokenizer="org/nowhere")), "long")


def test_no_tokenizer_is_not_the_working_folder(config: Config) -> None:
    release = make_release(replace(config, data=replace(config.data, tokenizer="")), "long")
    assert not (release / "tokenizer").exists()


def test_the_encoder_that_indexed_goes_along(config: Config, tmp_path: Path) -> None:
    write_clap(tmp_path / "clap")
    (tmp_path / "clap/pytorch_model.bin").write_text("the weights once more")
    index = Path(config.output) / "demo/retrieval/train"
    index.mkdir(parents=True)
    (index / "index.json").write_text("{}")
    indexed = replace(config, retrieval=RetrievalConfig(encoder=str(tmp_path / "clap")))
    release = make_release(indexed, "long")
    shutil.rmtree(tmp_path / "clap")
    released, _ = find(release)
    assert encoder_digest(released) and Path(released.retrieval.encoder).parent == release
    assert not (release / "retrieval_encoder/pytorch_model.bin").exists()
    verify_digest(release)
