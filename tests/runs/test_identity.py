"""The inputs of a stage: what changes its weights changes a digest, nothing else does."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_af.config import (
    AugmentConfig,
    BoundsConfig,
    Config,
    ConfigError,
    DataConfig,
    DatasetConfig,
    DictionaryConfig,
    ImportConfig,
    LoRAConfig,
    NeighboursConfig,
    PartConfig,
    ScenesConfig,
    SceneSet,
    StageConfig,
)
from megatron_af.config.effects import Effect, fields_of
from megatron_af.config.loading import to_yaml
from megatron_af.runs.identity import check_resume, dataset_digest, evaluation_inputs, stage_inputs, stage_settings
from megatron_af.runs.paths import LATEST, MANIFEST
from megatron_af.runs.pointers import checkpoint_digest


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


def with_scenes(config: Config, **changes: object) -> Config:
    scenes = replace(config.data.datasets["scenes"], **changes)  # type: ignore[arg-type]
    return replace(config, data=replace(config.data, datasets={"scenes": scenes}))


def with_encoder(config: Config, **changes: object) -> Config:
    encoder = replace(config.model.encoder, **changes)  # type: ignore[arg-type]
    return replace(config, model=replace(config.model, encoder=encoder))


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        (lambda c: replace(c, seed=1), {"config"}),
        (lambda c: with_align(c, max_windows=7), {"config"}),
        (lambda c: with_align(c, steps=7, passes=2.0), set()),
        (lambda c: with_align(c, micro_batch_samples=2, pack_tokens=99), set()),
        (lambda c: replace(c, data=replace(c.data, text_style="af1")), {"config"}),
        (lambda c: replace(c, data=replace(c.data, tokenizer="org/other")), {"config"}),
        (lambda c: with_scenes(c, task_prefix_probability=0.5), {"config"}),
        (lambda c: with_scenes(c, source="elsewhere.jsonl"), set()),
        (lambda c: with_encoder(c, recompute=True), set()),
        (lambda c: with_encoder(c, drop_path=0.2), {"config"}),
        (lambda c: with_align(c, evaluation=("clotho",), exit_gate={"loss": BoundsConfig(max=1.0)}), set()),
        (lambda c: replace(c, parallel=replace(c.parallel, tensor=2)), set()),
        (lambda c: replace(c, log_every_steps=1), set()),
    ],
    ids=[
        *("seed", "windows", "length", "micro-batches", "text style", "tokenizer", "task prefix", "source"),
        *("recompute", "drop-path", "evaluation", "layout", "logging"),
    ],
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


# ``stage`` says which one is asked about, and is no setting of it.
SETTINGS = [(key, effect) for key, effect in fields_of(Config) if key != "stage"]


@pytest.mark.parametrize(("key", "effect"), SETTINGS, ids=lambda part: str(part))
def test_resume_and_skip_agree_on_every_field(key: str, effect: Effect, tmp_path: Path) -> None:
    """Whatever a field shapes, both say the same of a change of it, and what its declaration says."""
    gate = {"loss": BoundsConfig(max=1.0)}
    parts = {"lora": LoRAConfig(), "augment": AugmentConfig()}
    stage = StageConfig(blend={"scenes": 1.0}, entry={"lm": "lm"}, exit_gate=gate, **parts)
    listed = DictionaryConfig(path="codes.csv", code="a", means="b")
    origin = ImportConfig(format="csv", path="a.csv", dictionary=listed)
    neighbours = NeighboursConfig(of="scenes")
    made = DatasetConfig(manifest="m", origin=origin, neighbours=neighbours, part=PartConfig(of="scenes"))
    base = Config(
        name="demo",
        data=DataConfig(datasets={"scenes": made}),
        curriculum={"align": stage},
        stage="align",
        scenes=ScenesConfig(sets={"train": SceneSet(part="train", scenes=1)}),
    )
    concrete = key.replace("datasets.<name>", "datasets.scenes").replace("curriculum.<name>", "curriculum.align")
    concrete = concrete.replace("exit_gate.<name>", "exit_gate.loss").replace("steps.<name>", "steps.prepare")
    concrete = concrete.replace("sets.<name>", "sets.train")
    changed = change_at(base, concrete.split("."))
    kept = effect not in (Effect.WEIGHTS, Effect.ORDER)
    assert (stage_settings(base, "align") == stage_settings(changed, "align")) is kept
    (tmp_path / "config.yaml").write_text(to_yaml(base))
    if kept:
        check_resume(changed, tmp_path)
    else:
        with pytest.raises(ConfigError, match=re.escape(concrete)):
            check_resume(changed, tmp_path)


def change_at(section: Any, path: list[str]) -> Any:
    """The same tree with another value there."""
    if not path:
        return another(section)
    name, *rest = path
    if isinstance(section, dict):
        return {**section, name: change_at(section[name], rest)}
    value = change_at(getattr(section, name), rest)
    return replace(section, **{name: value})


def another(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return 1.0 if value is None else not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return LITERALS.get(value, value + "x")
    if isinstance(value, dict):
        return {**value, "more": 3.0} if all(isinstance(v, float) for v in value.values()) else {**value, "more": "x"}
    return (*value, 1 if value and isinstance(value[0], int) else "more")


LITERALS = {
    "bf16": "fp32", "htk": "slaney", "": "mlp", "rope": "sinusoidal", "none": "full", "af2": "af1", "mix": "first",
    "constant": "cosine", "af_clap": "clip", "csv": "labels", "answer": "contrastive", "qwen2": "qwen2x",
}  # fmt: skip


def test_a_replaced_recording_behind_a_manifest_is_another_data_set(config: Config, tmp_path: Path) -> None:
    (tmp_path / "scenes.jsonl").write_text('{"id": "a", "clips": [{"path": "a.wav"}, {"path": "gone.wav"}]}\n{}\n')
    (tmp_path / "a.wav").write_bytes(b"0" * 200_000)
    before = dataset_digest(config, "scenes")
    assert dataset_digest(config, "scenes") == before
    os.utime(tmp_path / "a.wav", (0, 0))
    assert dataset_digest(config, "scenes") == before, "touched, or copied elsewhere"
    (tmp_path / "a.wav").write_bytes(b"0" * 100_000 + b"1" + b"0" * 99_999)
    changed = dataset_digest(config, "scenes")
    assert changed != before, "of the same length"
    (tmp_path / "a.wav").write_bytes(b"0" * 200_001)
    assert dataset_digest(config, "scenes") not in (before, changed)


def test_a_benchmark_is_its_file_and_all_that_its_rows_are_read_from(config: Config, tmp_path: Path) -> None:
    suite, rows, codes = tmp_path / "toy.yaml", tmp_path / "toy.csv", tmp_path / "codes.csv"
    suite.write_text(
        "title: toy\nmetrics: [exact]\nsource: {format: csv, path: toy.csv, columns: {audio: a, labels: b}, "
        "dictionary: {path: codes.csv, code: mid, means: name}}\n"
    )
    asking = with_align(config, suites=(str(suite),))
    with pytest.raises(FileNotFoundError, match=r"benchmark .*toy\.yaml: there is no .*toy\.csv; .*source\.path"):
        evaluation_inputs(asking, "align")
    rows.write_text("a,b\n")
    with pytest.raises(FileNotFoundError, match=r"there is no .*codes\.csv; .*source\.dictionary\.path"):
        evaluation_inputs(asking, "align")
    codes.write_text("mid,name\n")
    digests = [evaluation_inputs(asking, "align")]
    for file in (rows, codes, suite):
        file.write_text(file.read_text() + "\n# x\nclean: [first_line]\n")
        digests.append(evaluation_inputs(asking, "align"))
    assert len(set(digests)) == 4


def test_a_local_text_tower_counts_in_a_contrastive_stage_alone(config: Config, tmp_path: Path) -> None:
    write_checkpoint(config, "lm", "1")
    (tmp_path / "tower").mkdir()
    (tmp_path / "tower/weights").write_text("1")
    clap = replace(config.model.clap, text_tower=str(tmp_path / "tower"))
    config = replace(config, model=replace(config.model, clap=clap))
    assert "text_tower" not in stage_inputs(config, "align")
    contrastive = with_align(config, objective="contrastive", entry={})
    before = stage_inputs(contrastive, "align")["text_tower"]
    (tmp_path / "tower/weights").write_text("2")
    assert stage_inputs(contrastive, "align")["text_tower"] != before


@pytest.mark.parametrize("inside", ["tokenizer.json", ""])
def test_a_local_tokenizers_content_counts(config: Config, tmp_path: Path, inside: str) -> None:
    write_checkpoint(config, "lm", "1")
    (tmp_path / "words").mkdir()
    (tmp_path / "words/tokenizer.json").write_text("{}")
    config = replace(config, data=replace(config.data, tokenizer=str(tmp_path / "words" / inside)))
    before = stage_inputs(config, "align")
    (tmp_path / "words/tokenizer.json").write_text('{"more": 1}')
    after = stage_inputs(config, "align")
    assert {name for name in before if before[name] != after[name]} == {"tokenizer"}


def test_a_resume_looks_at_the_files_as_well(config: Config, tmp_path: Path) -> None:
    write_checkpoint(config, "lm", "1")
    config = replace(config, stage="align")
    recorded = stage_inputs(config, "align")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    check_resume(config, tmp_path, recorded)
    (tmp_path / "scenes.jsonl").write_text("{}\n{}\n")
    (config.stage_folder("lm") / "checkpoints/step_00000001").rename(tmp_path / "old")
    write_checkpoint(config, "lm", "2")
    with pytest.raises(ConfigError) as error:
        check_resume(config, tmp_path, recorded)
    assert [problem.partition(":")[0] for problem in error.value.problems] == ["data/scenes", "parent/lm"]
    shutil.rmtree(config.stage_folder("lm"))
    (tmp_path / "scenes.jsonl").write_text("{}\n")
    check_resume(config, tmp_path, recorded)  # what it took from there lies in its checkpoint


def test_a_resume_finds_its_files_wherever_they_lie(config: Config, tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words/tokenizer.json").write_text("{}")
    write_checkpoint(config, "lm", "1").rename(tmp_path / "of another run")
    config = replace(config, data=replace(config.data, tokenizer=str(tmp_path / "words")), stage="align")
    config = with_align(config, entry={"lm": str(tmp_path / "of another run")})
    recorded = stage_inputs(config, "align")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    (tmp_path / "words").rename(tmp_path / "moved")
    (tmp_path / "of another run").rename(tmp_path / "moved run")
    moved = replace(config, data=replace(config.data, tokenizer=str(tmp_path / "moved")))
    with pytest.raises(ConfigError) as error:  # it is gone, and what is named now was not what it began with
        check_resume(with_align(moved, entry={"lm": str(tmp_path / "nowhere")}), tmp_path, recorded)
    assert [problem.partition(":")[0] for problem in error.value.problems] == ["curriculum.align.entry.lm"]
    moved = with_align(moved, entry={"lm": str(tmp_path / "moved run")})
    check_resume(moved, tmp_path, recorded)
    with pytest.raises(ConfigError) as error:  # of which nothing is recorded
        check_resume(moved, tmp_path)
    assert [problem.partition(":")[0] for problem in error.value.problems] == [
        "curriculum.align.entry.lm",
        "data.tokenizer",
    ]
    (tmp_path / "moved/tokenizer.json").write_text('{"more": 1}')
    with pytest.raises(ConfigError) as error:
        check_resume(moved, tmp_path, recorded)
    assert error.value.problems == ("tokenizer: other files than those it was trained with",)
    named = replace(moved, data=replace(moved.data, tokenizer="org/words"))
    with pytest.raises(ConfigError) as error:
        check_resume(named, tmp_path, recorded)
    assert error.value.problems[0].startswith("data.tokenizer: was")


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
