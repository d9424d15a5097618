"""Added tokens, round trips, and the ways a tokenizer can be unusable."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models

from megatron_af.text.tokenizer import ADDED_TOKENS, Tokenizer
from tests.text.opt_files import write_opt
from tests.text.toy_tokenizer import toy_base, toy_tokenizer, words_tokenizer


def test_added_tokens_stand_behind_qwens_vocabulary_in_the_references_order() -> None:
    vocabulary = {f"t{i}": i for i in range(151_643)}
    base = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    base.add_special_tokens(["<|endoftext|>", *(f"<|extra{i}|>" for i in range(21))])
    tokenizer = Tokenizer(base)
    assert tokenizer.added == {
        "<audio>": 151_665, "<|endofchunk|>": 151_666, "<|PAD_TOKEN|>": 151_667, "<SEP>": 151_668,
    }  # fmt: skip
    assert tokenizer.eos_id == 151_643 and len(tokenizer) == 151_669


def test_text_round_trips_and_special_tokens_in_text_stay_text() -> None:
    tokenizer = toy_tokenizer()
    for text in ("Rain, and thunder.", "regen für 3 s", "雨", "a<SEP>b<audio><|endoftext|>"):
        ids = tokenizer.encode(text)
        assert max(ids) < tokenizer.eos_id
        assert tokenizer.decode(ids) == text
    mixed = [tokenizer.audio_id, *tokenizer.encode("hi"), tokenizer.separator_id, tokenizer.eos_id]
    assert tokenizer.decode(mixed) == "hi"
    assert tokenizer.decode(mixed, skip_special=False) == "<audio>hi<SEP><|endoftext|>"


def test_words_that_a_vocabulary_lacks_are_named() -> None:
    assert toy_tokenizer().unknown_words("雨, <SEP> and thunder") == []
    assert words_tokenizer("a", "dog").unknown_words("a Cat, a dog and a cat") == ["Cat", ",", "and", "cat"]


def test_what_is_never_written_into_an_answer() -> None:
    base = toy_base()
    base.add_special_tokens(["<|im_start|>"])
    base.add_tokens(["[tone]"])
    tokenizer = Tokenizer(base)
    inside = tokenizer.encode("rain [tone]")
    end = len(tokenizer)
    never = tokenizer.never_written(end + 3)  # the table has rows without a token
    assert not {*inside, tokenizer.eos_id, tokenizer.end_of_chunk_id} & set(never)
    assert never == [257, tokenizer.audio_id, tokenizer.pad_id, tokenizer.separator_id, end, end + 1, end + 2]


def test_loads_folder_and_file_and_reads_the_eos_token(tmp_path: Path) -> None:
    base = toy_base()
    base.add_special_tokens(["<|im_end|>"])
    base.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path / "tokenizer.json").eos == "<|endoftext|>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos == "<|im_end|>" and tokenizer.first_added_id == 258


def test_exported_tokenizer_keeps_its_ids(tmp_path: Path) -> None:
    base = toy_base()
    base.add_special_tokens(list(ADDED_TOKENS))
    base.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.added == toy_tokenizer().added
    assert tokenizer.decode(tokenizer.encode("a<SEP>b")) == "a<SEP>b"
    assert tokenizer.separator_id not in tokenizer.encode("a<SEP>b")


def test_opts_two_files_load_with_the_ids_of_audio_flamingo_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_opt(tmp_path)

    def hub(name: str, file: str) -> str:
        if not (tmp_path / file).is_file():
            raise OSError(f"{name} does not appear to have a file named {file}")
        return str(tmp_path / file)

    monkeypatch.setattr("transformers.utils.cached_file", hub)
    for source in (tmp_path, "facebook/opt-iml-max-1.3b"):
        tokenizer = Tokenizer.load(source)
        assert tokenizer.added == {"<audio>": 50_265, "<|endofchunk|>": 50_266, "<SEP>": 50_267}
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, len(tokenizer)) == (2, 2, 1, 50_268)
        ids = tokenizer.encode("rain </s>")
        assert tokenizer.decode(ids) == "rain </s>" and 2 not in ids and len(ids) == 6
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"vocab.json and merges.txt \(data.tokenizer\)"):
        Tokenizer.load(tmp_path)


def test_unusable_tokenizers_say_why(tmp_path: Path) -> None:
    base = toy_base()
    base.add_special_tokens(["<audio>"])
    with pytest.raises(ValueError, match=r"holds <audio> but not <\|endofchunk\|>"):
        Tokenizer(base)
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        Tokenizer(tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    base = toy_base()
    base.add_special_tokens(list(reversed(ADDED_TOKENS)))
    with pytest.raises(ValueError, match="do not follow each other"):
        Tokenizer(base)
    with pytest.raises(FileNotFoundError, match=r"data\.tokenizer"):
        Tokenizer.load(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"data\.tokenizer"):
        Tokenizer.load("missing/tokenizer.json")  # no name of a hub repository, however alike
