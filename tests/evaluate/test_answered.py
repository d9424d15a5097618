"""Questions and answers come back from their table as they were, and gates read what each was worth."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from megatron_af.data.rows import Clip
from megatron_af.evaluate.answered import Answered, read_answered, read_scores, write_answered
from megatron_af.runs.results import BadResults, Results

TWO = [
    Answered(
        id="a",
        group="x.wav#0",
        skill="what",
        prompt="what?",
        references=("rain", "a rain"),
        options=("rain", "wind"),
        audio="x.wav",
        start=1.5,
        duration=2.0,
        offset=512,
        length=100,
        digest="d",
        answers=("rain", None),
        logprobs=(-0.5, -2.0),
    ),
    Answered(id="b", group="x.wav#0", skill="", prompt="why?", references=("so",), labels=("l",), answers=("",)),
]


def test_a_table_keeps_everything(tmp_path: Path) -> None:
    path = tmp_path / "suite-toy.parquet"
    write_answered(path, TWO, {"match": [1.0, None]})
    assert read_answered(path) == TWO
    assert TWO[0].clip == Clip(path="x.wav", start=1.5, duration=2.0, offset=512, length=100, digest="d")
    assert read_scores(path) == {"match": {"a": 1.0, "b": None}}
    assert pq.read_table(path).schema.field("logprobs").type.value_type == "double"
    results = Results.load(tmp_path)
    assert results.scores("toy/match") == {"toy/a": ("toy/x.wav#0", 1.0), "toy/b": ("toy/x.wav#0", 0.0)}
    path.write_text("{}")
    with pytest.raises(BadResults, match=r"suite-toy\.parquet: no Parquet"):
        Results.load(tmp_path)


def test_a_table_of_before_shards_were_known_is_read(tmp_path: Path) -> None:
    path = tmp_path / "suite-toy.parquet"
    write_answered(path, TWO, {"match": [1.0, None]})
    pq.write_table(pq.read_table(path).drop_columns(["offset", "length", "digest"]), path)
    assert read_answered(path) == [replace(one, offset=0, length=0, digest="") for one in TWO]


def test_no_question_at_all_is_a_table_too(tmp_path: Path) -> None:
    write_answered(tmp_path / "t.parquet", [], {})
    assert read_answered(tmp_path / "t.parquet") == []
