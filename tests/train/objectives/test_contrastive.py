"""Rows that cannot train a CLAP: each has a clear outcome, never a silent one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_af.config import Config, ContrastiveConfig, StageConfig
from megatron_af.data.rows import Row, RowError, Span, parse_row
from megatron_af.data.sample_source import TooManyReplacements
from megatron_af.data.sampler import Draw
from megatron_af.runs.check import check
from megatron_af.train.objectives.contrastive import Contrastive
from tests.data.toy import open_stream, toy_config, toy_rows, write_manifest

STAGE = StageConfig(objective="contrastive", trainable=("encoder.*", "clap.*"), global_batch_samples=8)


def run(folder: Path, rows: list[Row], stage: StageConfig = STAGE) -> Config:
    toy = toy_config(folder, stage)
    captions = write_manifest(Path(toy.data.root), "c", rows)
    return replace(
        toy,
        data=replace(toy.data, datasets={"c": captions}),
        curriculum={"tune": replace(stage, blend={"c": 1.0})},
    )


def good_rows(folder: Path) -> list[Row]:
    rows = toy_rows(folder / "data", "c", 16)
    return [replace(row, negatives=(f"no {row.id}",)) for row in rows if len(row.clips) == 1]


def first_batch(config: Config) -> set[str]:
    stream = open_stream(config)
    try:
        return set(stream.batch(0).sample_ids)
    finally:
        stream.close()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"captions": ()}, "needs one clip and at least one caption"),
        ({"captions": ("A dog. ",), "negatives": ("rain", "a dog.")}, "'a dog.' is a caption and a negative at once"),
        (
            {"spans": (Span(start=0.0, end=0.2, captions=("dog",), negatives=("dog",)),)},
            "'dog' is a caption and a negative at once",
        ),
        ({"clips": ()}, "needs one clip and at least one caption"),
    ],
)
def test_a_row_that_contradicts_itself_is_replaced_and_reported(tmp_path: Path, change: dict, problem: str):
    rows = good_rows(tmp_path)
    rows[0] = replace(rows[0], **change)
    config = run(tmp_path, rows)
    assert rows[0].id not in first_batch(config)
    report = [json.loads(line) for line in (tmp_path / "runs/toy/tune/replaced.jsonl").read_text().splitlines()]
    assert any(problem in entry["problem"] for entry in report)


def test_only_bad_rows_stop_the_run(tmp_path: Path):
    rows = [replace(row, captions=()) for row in good_rows(tmp_path)]
    with pytest.raises(TooManyReplacements):
        first_batch(run(tmp_path, rows))


@pytest.mark.parametrize("captions", [[""], ["  "], [3], "a dog"])
def test_empty_captions_do_not_even_parse(captions: object):
    with pytest.raises(RowError, match="'captions'"):
        parse_row({"id": "1", "clips": [], "captions": captions}, "here")


def test_settings_that_cannot_train_are_refused_before_the_run(tmp_path: Path):
    config = run(tmp_path, good_rows(tmp_path), replace(STAGE, global_batch_samples=1, micro_batch_samples=1))
    (problem,) = check(config, 1)
    assert "global_batch_samples = 1: a contrastive loss compares samples; use 2 or more" in problem
    mixed = replace(STAGE, max_windows=3, contrastive=replace(STAGE.contrastive, mix_up=0.5))
    (problem,) = check(replace(config, curriculum={"tune": replace(mixed, blend={"c": 1.0})}), 1)
    assert "set curriculum.tune.max_windows to 1 or mix_up to 0" in problem


@pytest.mark.parametrize(
    ("loss", "positives", "kept"),
    [("af_clap", "sum", 3), ("af_clap", "each", 3), ("af_clap", "one", 1), ("clip", "sum", 1)],
)
def test_one_caption_is_drawn_where_the_loss_counts_one(loss: str, positives: str, kept: int) -> None:
    stage = replace(STAGE, contrastive=ContrastiveConfig(loss=loss, positives=positives))  # type: ignore[arg-type]
    texts = Contrastive().texts(Config(name="x"), stage, None)  # type: ignore[arg-type]
    row = parse_row({"id": 1, "clips": [{"path": "a.wav", "duration": 1.0}], "captions": ["a", "b", "c"],
                     "negatives": ["d", "e"]}, "x")  # fmt: skip
    draws = [Draw(index=i, dataset="c", row=0, dataset_pass=0, random=i) for i in range(40)]
    said = [texts.of(row, draw)[1][0] for draw in draws]
    assert {len(captions.positives) for captions in said} == {kept}
    assert {text for captions in said for text in captions.positives} == {"a", "b", "c"}, "another one each time"
    assert all(captions.negatives == ("d", "e") for captions in said)
