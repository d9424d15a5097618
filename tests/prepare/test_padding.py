"""Padding of a stage's batches: counted by hand, and less of it in length buckets."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from megatron_af.config import Config, StageConfig
from megatron_af.data.rows import Clip, Question, Row
from megatron_af.prepare.padding import doubling, padding_of, padding_tables
from megatron_af.text.tokenizer import Tokenizer
from megatron_af.train.objectives.base import objective_of
from tests.data.toy import toy_config, write_manifest

STAGE = StageConfig(global_batch_samples=4, micro_batch_samples=2, max_windows=8, max_text_tokens=64)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Forty rows of one window and forty of eight, about recordings that are not there."""
    config = toy_config(tmp_path, STAGE, sizes=(0, 0))
    question = Question(prompt="what?", output="rain")
    rows = [
        Row(id=str(i), clips=(Clip(path="none.wav", duration=0.5 if i % 2 else 60.0),), questions=(question,))
        for i in range(80)
    ]
    dataset = write_manifest(tmp_path / "data", "a", rows)
    stage = replace(STAGE, blend={"a": 1.0})
    return replace(config, data=replace(config.data, datasets={"a": dataset}), curriculum={"tune": stage})


def padding(config: Config, **changed: object) -> tuple[float, float]:
    stage = replace(config.curriculum["tune"], **changed)
    texts = objective_of(stage).texts(config, stage, Tokenizer.load(config.data.tokenizer))
    found = padding_of(config, stage, texts)
    return found.text, found.audio


def test_what_is_padding_is_counted_by_hand(config: Config) -> None:
    text, audio = padding(config, length_buckets=(1, 4))
    assert audio == 0  # each batch of one length
    assert text == pytest.approx(1 - text_of_a_row(config) / -(-text_of_a_row(config) // 8) / 8)
    mixed = padding(config)[1]
    assert 0.15 < mixed < 0.35  # two rows of 1 or 8 windows: a half of micro-batches has 7 of 16 empty
    assert padding(config, micro_batch_samples=1)[1] == 0


def text_of_a_row(config: Config) -> int:
    stage = config.curriculum["tune"]
    texts = objective_of(stage).texts(config, stage, Tokenizer.load(config.data.tokenizer))
    from megatron_af.data.sample_source import rows_of, sampler_of

    rows = rows_of(config, stage)
    return len(texts.of(rows["a"][0], sampler_of(config, stage, rows).draw(0))[1].segments[0])


def test_the_table_shows_both_orders_packed_and_not_beside_the_papers(config: Config) -> None:
    stage = replace(config.curriculum["tune"], pack_tokens=128)
    clap = replace(stage, objective="contrastive")
    console = Console(record=True, width=140, file=io.StringIO())
    console.print(*padding_tables(replace(config, curriculum={"clap": clap, "tune": stage})))
    shown = console.export_text()
    lines = [line for line in shown.splitlines() if "any" in line or "length_buckets" in line]
    assert [("length_buckets [1, 2, 4]" in line, "packed to 128" in line) for line in lines[:4]] == [
        (False, False),
        (True, False),
        (False, True),
        (True, True),
    ]
    assert "(as configured)" in lines[2] and shown.count("(as configured)") == 1
    assert "58% in any order, 16%" in shown and "stage clap" not in shown


def test_buckets_that_double() -> None:
    assert [doubling(most) for most in (1, 2, 3, 30)] == [(), (1,), (1, 2), (1, 2, 4, 8, 16)]
