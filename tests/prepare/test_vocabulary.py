"""A tokenizer that fits a run's rows."""

from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers

from megatron_af.config import Config, ConfigError, DataConfig, DatasetConfig
from megatron_af.data.rows import Clip, Question, Row, Span, to_json
from megatron_af.data.templates import render
from megatron_af.prepare.vocabulary import make_tokenizer
from megatron_af.text.tokenizer import Tokenizer
from tests.text.toy_tokenizer import toy_base

CLIP = Clip(path="a.wav", duration=1.0)
ROW = Row(
    id="a",
    clips=(CLIP,),
    questions=(Question(prompt="what barks?", output="a dog", options=("a dog", "one cat")),),
    captions=("some rain",),
    negatives=("wind",),
    spans=(Span(start=0.0, end=1.0, captions=("hail",), negatives=("snow",)),),
    task="hearing",
)


def run(folder: Path, *rows: Row) -> Config:
    (folder / "a.jsonl").write_text("not json\n" + "".join(to_json(row) + "\n" for row in rows))
    sets = {"a": DatasetConfig(manifest="prepared/a", source="a.jsonl"), "later": DatasetConfig(manifest="b.jsonl")}
    return Config(
        name="t", data=DataConfig(root=str(folder), tokenizer=str(folder / "words/tokenizer.json"), datasets=sets)
    )


def test_everything_that_a_row_says_can_be_written(tmp_path: Path) -> None:
    config = run(tmp_path, ROW)
    made = make_tokenizer(config)
    tokenizer = Tokenizer.load(config.data.tokenizer)
    assert made.datasets == ["a"] and made.tokens == len(tokenizer)
    assert made.words == made.tokens - len(tokenizer.added) == tokenizer.first_added_id
    assert {"dog", "cat", "snow", "hearing"} <= set(made.new)
    for said in ("what barks?", "a dog", "one cat", "some rain", "wind", "hail", "snow", "this is a sound of rain"):
        assert tokenizer.unknown_words(said) == []
    for template in ("single", "dialogue", "interleaved", "interleaved_random"):
        text = render(replace(ROW, template=template), tokenizer, 99, task_prefix=True)
        assert "<unknown>" not in tokenizer.decode(text.segments[0], skip_special=False)


def test_what_is_there_is_extended_and_a_full_one_is_left_alone(tmp_path: Path) -> None:
    config = run(tmp_path, ROW)
    make_tokenizer(config)
    file = Path(config.data.tokenizer)
    before, stamp = Tokenizer.load(file), file.stat().st_mtime_ns
    assert make_tokenizer(config).new == [] and file.stat().st_mtime_ns == stamp
    made = make_tokenizer(run(tmp_path, ROW, replace(ROW, captions=("thunder",))))
    assert made.new == ["thunder"]
    after = Tokenizer.load(file)
    assert after.encode("a dog barks") == before.encode("a dog barks")
    assert after.encode("thunder") == [before.first_added_id] and after.first_added_id == before.first_added_id + 1
    other = replace(config, data=replace(config.data, tokenizer=str(tmp_path / "mine.json")))
    assert make_tokenizer(other, file.parent).new == []
    assert (tmp_path / "mine.json").read_bytes() == file.read_bytes()


def test_what_cannot_be_made_says_why(tmp_path: Path) -> None:
    config = run(tmp_path, ROW)
    with pytest.raises(ConfigError, match=r"data.tokenizer = org/model: name a file that ends with .json"):
        make_tokenizer(replace(config, data=replace(config.data, tokenizer="org/model")))
    none = replace(config.data, datasets={"later": DatasetConfig(manifest="b.jsonl")})
    with pytest.raises(ConfigError, match=r"none of later has rows; import them"):
        make_tokenizer(replace(config, data=none))
    (tmp_path / "words").mkdir()
    toy_base().save(config.data.tokenizer)
    with pytest.raises(ConfigError, match=r"words/tokenizer.json: its model is BPE"):
        make_tokenizer(config)


@pytest.mark.parametrize(
    ("vocabulary", "told"),
    [
        ({"<|endoftext|>": 0, "a": 1}, "no token for words that it does not know"),
        ({"[UNK]": 0}, "no end-of-sequence token"),
    ],
)
def test_what_would_be_no_tokenizer_is_not_written(tmp_path: Path, vocabulary: dict[str, int], told: str) -> None:
    base = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    base.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    base.save(str(tmp_path / "theirs.json"))
    config = run(tmp_path, ROW)
    with pytest.raises(ConfigError, match=rf"theirs\.json: the tokenizer has {told}"):
        make_tokenizer(config, tmp_path / "theirs.json")
    assert not Path(config.data.tokenizer).exists()
