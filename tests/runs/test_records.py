"""A stage's record comes back, and what is put aside never takes the place of what others point at."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_af.config import Config, ConfigError, DataConfig, DatasetConfig, StageConfig
from megatron_af.config.loading import to_yaml
from megatron_af.runs import records
from megatron_af.runs.identity import stage_inputs
from megatron_af.runs.records import StageRecord, checkpoints_in, claim, put_aside
from megatron_af.text.words import build, extend


def test_a_record_comes_back(tmp_path: Path) -> None:
    assert StageRecord.load(tmp_path) is None
    record = StageRecord(inputs={"data": "sha256:1"}, done=True, checkpoint="step_1", digest="sha256:2", seconds=1.5)
    record.save(tmp_path)
    assert StageRecord.load(tmp_path) == record


def stage(folder: Path, mark: str) -> Path:
    checkpoint = folder / "checkpoints/step_1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint.json").write_text("{}")
    (folder / "mark").write_text(mark)
    return checkpoint


def marks(run: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in run.glob("*/mark")}


@pytest.mark.parametrize("pointed", [False, True])
def test_one_older_result_is_kept_and_all_that_are_pointed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pointed: bool
) -> None:
    run = tmp_path / "runs/demo"
    monkeypatch.setattr(
        records, "is_pointed_at", lambda place, output: pointed and output == (tmp_path / "runs").resolve()
    )
    for mark in ("first", "second", "third"):
        stage(run / "align", mark)
        put_aside(run / "align")
        assert not (run / "align").exists()
    kept = {"align.replaced": "third"}
    if pointed:
        kept = {"align.replaced": "first", "align.replaced-2": "second", "align.replaced-3": "third"}
    assert marks(run) == kept


def test_only_complete_checkpoints_are_found(tmp_path: Path) -> None:
    whole = stage(tmp_path / "align", "x")
    (tmp_path / "align/checkpoints/step_2").mkdir()
    assert checkpoints_in(tmp_path / "align") == [whole.resolve()]


def test_a_folder_is_claimed_for_one_run(tmp_path: Path) -> None:
    rows = tmp_path / "a.jsonl"
    rows.write_text("{}\n")
    config = Config(
        name="demo",
        stage="align",
        output=str(tmp_path / "runs"),
        data=DataConfig(root=str(tmp_path), datasets={"a": DatasetConfig(manifest="a.jsonl")}),
        curriculum={"align": StageConfig(blend={"a": 1.0})},
    )
    folder = config.stage_folder("align")
    claim(config)
    claim(replace(config, seed=1))  # nothing lies there yet
    claimed = StageRecord.load(folder)
    assert claimed is not None and claimed.inputs == stage_inputs(replace(config, seed=1), "align")
    claim(config)
    checkpoint = stage(folder, "x")
    (checkpoint / "config.yaml").write_text(to_yaml(config))
    (checkpoint.parent / "latest").write_text(checkpoint.name)
    claim(config)
    with pytest.raises(ConfigError, match="seed: was 0, now 1"):
        claim(replace(config, seed=1))
    rows.write_text("{}\n{}\n")
    with pytest.raises(ConfigError, match="data/a: other files than those it was trained with"):
        claim(config)


def test_weights_are_begun_with_by_those_who_have_their_words(tmp_path: Path) -> None:
    """Else the rows of the table would be taken for other words', without a word."""
    (tmp_path / "a.jsonl").write_text("{}\n")
    first, other, grown = (tmp_path / f"{name}.json" for name in ("first", "other", "grown"))
    build(["dog rain"]).save(str(first))
    build(["bell dog rain"]).save(str(other))
    extend(build(["dog rain"]), ["bell"])[0].save(str(grown))

    def run(name: str, words: Path, **stage: Any) -> Config:
        data = DataConfig(root=str(tmp_path), tokenizer=str(words), datasets={"a": DatasetConfig(manifest="a.jsonl")})
        curriculum = {"answer": StageConfig(blend={"a": 1.0}, **stage)}
        return Config(name=name, stage="answer", output=str(tmp_path / "runs"), data=data, curriculum=curriculum)

    before = run("before", first)
    claim(before)
    checkpoint = stage(before.stage_folder("answer"), "x")
    (checkpoint / "checkpoint.json").write_text(json.dumps({"parts": {"lm": ".", "encoder": "."}}))
    (checkpoint / "config.yaml").write_text(to_yaml(before))
    entry = {"lm": str(checkpoint)}
    with pytest.raises(ConfigError, match=r"entry: lm of .* words of .*first.json, .* has others: 'dog' is \d+ in the"):
        claim(run("refused", other, entry=entry))
    assert not (tmp_path / "runs/refused").exists()
    claim(run("alike", grown, entry=entry))
    claim(run("hears", other, entry={"encoder": str(checkpoint)}))
    clap = {"objective": "contrastive", "entry": {"clap": str(checkpoint)}}
    (checkpoint / "checkpoint.json").write_text(json.dumps({"parts": {"clap": ".", "lm": "."}}))
    towers = run("towers", other, **clap)
    claim(replace(towers, model=replace(towers.model, clap=replace(towers.model.clap, text_tower="org/name"))))
    with pytest.raises(ConfigError, match="clap of"):
        claim(replace(towers, model=replace(towers.model, clap=replace(towers.model.clap, text_tower=""))))
    # What the words have become since says nothing of the weights.
    other.write_text("{}")
    claim(run("broken", other, entry=entry))
    extend(build(["dog rain"]), ["wind"])[0].save(str(first))
    claim(run("both", grown, entry=entry))


OTHER_MODELS = {
    "heads": ("lm", {"lm": {"heads": 8, "kv_heads": 1}}, r"lm of .* model.lm.heads = 16 \(here 8\), model.lm.kv_heads"),
    "layers": ("lm", {"lm": {"layers": 24}}, r"model.lm.layers = 36 \(here 24\)"),
    "blocks": ("xattn", {"cross_attention": {"heads": 4, "head_dim": 128}}, r"xattn of .*head_dim = 64 \(here 128\)"),
    "transform": ("transform", {"transform": {"heads": 4}}, r"model.transform.heads = 8 \(here 4\)"),
    "encoder": ("encoder", {"encoder": {"depths": (2, 2, 6, 2)}}, r"model.encoder.depths = \(2, 2, 12, 2\)"),
    "text tower": ("clap", {"clap": {"text_heads": 2}}, r"clap of .* model.clap.text_heads = 4 \(here 2\)"),
}


@pytest.mark.parametrize("origin", ["before", "path"])
@pytest.mark.parametrize(("part", "changes", "told"), OTHER_MODELS.values(), ids=OTHER_MODELS)
def test_weights_are_begun_with_by_a_model_that_computes_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], origin: str, part: str, changes: dict[str, Any], told: str
) -> None:
    """Its tensors have the shapes that are asked for, so loading them says nothing."""
    objective = "contrastive" if part == "clap" else "answer"
    (tmp_path / "a.jsonl").write_text("{}\n")
    trained = Config(
        name="run",
        stage="before",
        output=str(tmp_path / "runs"),
        data=DataConfig(root=str(tmp_path), datasets={"a": DatasetConfig(manifest="a.jsonl")}),
        curriculum={"before": StageConfig(blend={"a": 1.0}, objective=objective)},
    )
    checkpoint = stage(trained.stage_folder("before"), "x").rename(
        trained.stage_folder("before") / "checkpoints/step_00000001"
    )
    (checkpoint / "checkpoint.json").write_text(json.dumps({"parts": {part: "."}}))
    (checkpoint / "config.yaml").write_text(to_yaml(trained))
    (checkpoint.parent / "latest").write_text(checkpoint.name)
    entry = {"all": "before" if origin == "before" else str(checkpoint)}
    following = replace(
        trained,
        stage="after",
        curriculum=trained.curriculum | {"after": StageConfig(blend={"a": 1.0}, entry=entry, objective=objective)},
    )

    def changed(**sections: Any) -> Config:
        model = following.model
        inner = {name: replace(getattr(model, name), **values) for name, values in sections.items()}
        return replace(following, model=replace(model, **inner))

    with pytest.raises(ConfigError, match=f"(?s)cannot begin with the weights.*{told}"):
        claim(changed(**changes))
    assert not following.stage_folder("after").exists()
    claim(changed(transform={"ffn": 4096}))  # what shapes tell, who loads them tells
    assert not capsys.readouterr().out
    claim(changed(lm={"rope_base": 1e4}))
    assert ("model.lm.rope_base = 1000000.0 (here 10000.0)" in capsys.readouterr().out) == (part == "lm")
