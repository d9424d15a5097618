"""What a trained run offers is taken where its words and sizes fit, and the rest is named with its reason."""

import dataclasses
import json
from pathlib import Path

import pytest

from megatron_af.config import Config, ConfigError
from megatron_af.config.loading import CONFIGS, load_config, to_yaml
from megatron_af.prepare.vocabulary import Made
from megatron_af.start.origin import Begin, offered
from megatron_af.text.tokenizer import read_tokenizer
from megatron_af.text.words import build, extend

PARTS = ("encoder", "transform", "rows", "xattn", "lm")


def trained(folder: Path, parts: tuple[str, ...] = PARTS) -> Config:
    """Checkpoints without weights, of an answering stage and of AF-CLAP."""
    folder.mkdir(exist_ok=True)
    build(["a dog barks"]).save(str(folder / "words.json"))
    config = load_config(CONFIGS / "demo.yaml", [f"data.tokenizer={folder / 'words.json'}", f"output={folder}"])
    config = dataclasses.replace(config, name="run")
    for stage, held in (("long", parts), ("clap", ("encoder", "clap"))):
        checkpoint = config.stage_folder(stage) / "checkpoints" / "step_00000001"
        checkpoint.mkdir(parents=True)
        (checkpoint / "config.yaml").write_text(to_yaml(dataclasses.replace(config, stage=stage)))
        manifest = {"parts": dict.fromkeys(held, "."), "resume": {"stage": stage}}
        (checkpoint / "checkpoint.json").write_text(json.dumps(manifest))
        (checkpoint.parent / "latest").write_text(checkpoint.name)
    return config


def made(begin: Begin, file: Path, *texts: str) -> Made:
    """The words of a run of one's own behind those that are offered."""
    assert begin.tokenizer is not None
    base, new = extend(read_tokenizer(begin.tokenizer), texts)
    base.save(str(file))
    return Made(file=file, new=new, tokens=0, words=0, datasets=[])


def test_everything_is_taken_where_there_is_no_new_word(tmp_path: Path) -> None:
    config = trained(tmp_path)
    begin = offered(tmp_path / "run")
    begin = begin.with_words(made(begin, tmp_path / "own.json", "a dog")).with_texts(100)
    long, clap = (config.stage_folder(stage) / "checkpoints/step_00000001" for stage in ("long", "clap"))
    assert begin.taken == {**dict.fromkeys(PARTS, long), "clap": clap} and begin.model == config.model
    assert begin.told() == [
        f"{tmp_path / 'run'}: begins with encoder, transform, xattn, lm, rows of {long}",
        f"{tmp_path / 'run'}: begins with clap of {clap}",
    ]


def test_a_new_word_keeps_all_but_the_text_tower(tmp_path: Path) -> None:
    trained(tmp_path)
    begin = offered(tmp_path / "run")
    found = begin.with_words(made(begin, tmp_path / "own.json", "two cats"))
    assert set(found.taken) == set(PARTS) and found.answers and found.tokenizer == tmp_path / "words.json"
    assert found.told()[-1].endswith("not taken: clap: its text tower has no rows for 2 new words")


def test_words_that_lie_elsewhere_say_nothing(tmp_path: Path) -> None:
    """A tokenizer of the same name from before: every word would be read as another one."""
    trained(tmp_path)
    build(["rain", "wind"]).save(str(tmp_path / "own.json"))
    before = Made(file=tmp_path / "own.json", new=[], tokens=0, words=0, datasets=[])
    found = offered(tmp_path / "run").with_words(before)
    assert set(found.taken) == {"encoder"} and found.tokenizer is None
    assert set(found.left) == {"transform", "rows", "xattn", "lm", "clap"} and "delete the first" in found.left["lm"]


@pytest.mark.parametrize(("tokens", "taken"), [(1024, True), (1032, False)])
def test_longer_texts_than_it_reads_leave_what_answers(tmp_path: Path, tokens: int, taken: bool) -> None:
    trained(tmp_path)
    found = offered(tmp_path / "run").with_texts(tokens)
    assert found.answers is taken and {"encoder", "clap"} <= set(found.taken)
    if not taken:
        assert "reads 1,024 tokens (model.lm.max_positions), and a text has 1,032" in found.left["xattn"]


def test_adapters_and_tokenizers_that_take_no_words_are_named(tmp_path: Path) -> None:
    config = trained(tmp_path, (*PARTS, "lora"))
    assert offered(tmp_path / "run").left == {
        "lora": "the written stages train no adapters; tools/export.py merges them"
    }
    Path(config.data.tokenizer).unlink()
    found = offered(tmp_path / "run")
    assert set(found.taken) == {"encoder"} and found.left["lm"] == "its tokenizer is no file on this machine"


def test_what_does_not_hear_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, ("lm",))
    with pytest.raises(ConfigError, match="holds no encoder; name one that hears"):
        offered(tmp_path / "run")
