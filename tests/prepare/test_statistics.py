"""Statistics of a data set: what training would get of it, and what a stage leaves out."""

import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from megatron_af.data.rows import Manifest
from megatron_af.prepare.statistics import measure, tables
from megatron_af.text.tokenizer import Tokenizer
from tests.data.toy import toy_config, write_manifest
from tests.text.toy_tokenizer import words_tokenizer


def test_statistics_count_what_training_would_get(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    rows = Manifest(tmp_path / "data" / "a.jsonl")
    statistics = measure(rows, config, Tokenizer.load(config.data.tokenizer), name="a")
    clips = [clip for row in rows for clip in row.clips]
    assert statistics.rows == statistics.looked_at == 12 and statistics.text_only == 3
    assert statistics.seconds == [clip.duration for clip in clips]
    assert statistics.windows == [max(1, round(clip.duration + 0.49)) for clip in clips]
    assert statistics.skills == {"s0": 12, "s1": 12, "s2": 12} and len(statistics.tokens) == 36
    answer = len("answer 0 0") + 2
    assert statistics.supervised[0] == answer and statistics.tokens[0] > answer
    few = measure(rows, config, Tokenizer.load(config.data.tokenizer), name="a", limit=6)
    assert few.looked_at == 6 and few.rows == 12 and few.hours > 0
    console = Console(record=True, width=140, file=io.StringIO())
    console.print(*tables(statistics))
    text = console.export_text()
    assert "12 rows" in text and "text (tokens)" in text and "skills: 3 different" in text


def test_statistics_say_what_a_stage_leaves_out(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    tune = replace(config.curriculum["tune"], max_text_tokens=40)
    config = replace(config, curriculum={"tune": tune, "wide": replace(tune, max_text_tokens=512)})
    rows = list(Manifest(tmp_path / "data" / "a.jsonl"))
    long, short = replace(rows[0].questions[0], prompt="x" * 50), replace(rows[0].questions[0], prompt="x")
    write_manifest(tmp_path / "data", "a", [
        replace(rows[0], questions=(long, short, long)),
        replace(rows[0], questions=(long,)),
        replace(rows[0], questions=(long, short), clips=rows[0].clips * 2, template="interleaved"),
        replace(rows[0], questions=(short,)),
    ])  # fmt: skip
    tune = replace(tune, max_text_tokens=60)
    statistics = measure(
        Manifest(tmp_path / "data" / "a.jsonl"), replace(config, curriculum={**config.curriculum, "tune": tune}),
        Tokenizer.load(config.data.tokenizer), name="a",
    )  # fmt: skip
    assert (+statistics.too_long, +statistics.shortened) == ({"tune": 3}, {"tune": 1})
    console = Console(record=True, width=140, file=io.StringIO())
    console.print(*tables(statistics))
    assert "above max_text_tokens" in console.export_text()


def test_statistics_name_the_words_that_the_tokenizer_lacks(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    rows = Manifest(tmp_path / "data" / "a.jsonl")
    statistics = measure(rows, config, words_tokenizer("answer", *map(str, range(11))), name="a")
    lacking = "answers with '{}', which the tokenizer lacks"
    assert statistics.problems[lacking.format("11")] == 1 and not statistics.problems[lacking.format("0")]
