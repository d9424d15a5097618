"""Added tokens, round trips, and the ways a tokenizer can be unusable."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from megatron_af.foreign import ForeignError
from megatron_af.text.tokenizer import ADDED_TOKENS, Tokenizer, other_words
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
    with pytest.raises(FileNotFoundError, match=rf"data\.tokenizer.* below {Path.cwd()}, no such file"):
        Tokenizer.load("missing/tokenizer.json")  # no name of a hub repository, however alike


def spec(**model: object) -> dict[str, Any]:
    """A ``tokenizer.json`` of bytes, with changes of its model."""
    content: dict[str, Any] = json.loads(toy_base().to_str())
    content["model"] |= model
    return content


def test_what_a_vocabulary_cannot_say_is_named_whatever_its_kind() -> None:
    letters = {letter: i for i, letter in enumerate("adgors")}
    bpe = tokenizers.Tokenizer(models.BPE(vocab=letters, merges=[]))  # leaves out what it does not know
    unigram = tokenizers.Tokenizer(models.Unigram([("?", 0.0), *((letter, -2.0) for letter in letters)], unk_id=0))
    pieces = tokenizers.Tokenizer(models.WordPiece({"?": 0, "a": 1, "dog": 2}, unk_token="?"))
    for base in (bpe, unigram, pieces):
        base.pre_tokenizer = pre_tokenizers.Whitespace()
        base.add_special_tokens(["</s>"])
        tokenizer = Tokenizer(base)
        assert tokenizer.unknown_words("a dog") == []
        assert tokenizer.unknown_words("a 雨") == ["雨"]


def test_one_that_gives_up_at_unknown_words_is_refused() -> None:
    for model in (
        models.WordLevel({"</s>": 0, "a": 1}, unk_token="?"),
        models.WordPiece({"</s>": 0, "a": 1}, unk_token="?"),
        models.Unigram([("</s>", 0.0), ("a", -1.0)]),
        models.BPE(vocab={"</s>": 0, "a": 1}, merges=[], unk_token="?"),
    ):
        with pytest.raises(ValueError, match=r"no token for words that it does not know .*set unk_token"):
            Tokenizer(tokenizers.Tokenizer(model))


def test_a_tokenizer_that_was_trained_with_dropout_says_the_same_twice(tmp_path: Path) -> None:
    vocabulary = spec()["model"]["vocab"] | {"ab": 256, "abab": 257}
    content = spec(vocab=vocabulary, merges=[["a", "b"], ["ab", "ab"]], dropout=0.5)
    content["added_tokens"][0]["id"] = 258
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).encode("abab" * 100) == [257] * 100


def test_two_tokens_of_one_id_are_refused(tmp_path: Path) -> None:
    content = spec()
    content["model"]["vocab"] |= {"rain": 5}
    content["added_tokens"][0]["id"] = 257
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ForeignError, match=rf"{tmp_path}/tokenizer\.json: .*'rain'.* both have the id 5"):
        Tokenizer.load(tmp_path)


def test_no_token_stands_behind_the_added_ones() -> None:
    base = toy_base()
    base.add_special_tokens([*ADDED_TOKENS, "<|later|>"])
    with pytest.raises(ValueError, match=r"holds <\|later\|> at 261, behind Audio Flamingo's <SEP> at 260"):
        Tokenizer(base)


def test_nobody_forges_an_end_that_its_file_does_not_call_special() -> None:
    base = tokenizers.Tokenizer.from_str(json.dumps(spec() | {"added_tokens": []}))
    base.add_tokens(["<|endoftext|>", *ADDED_TOKENS])
    tokenizer = Tokenizer(base)
    text = "a<|endoftext|><SEP>"
    assert not {tokenizer.eos_id, *tokenizer.added.values()} & set(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"257": {"content": "<|im_start|>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9": {"content": "<|endoftext|>"}}}),
        ("added_tokens.json", {"<|im_start|>": 256}),
    ],
)
def test_files_of_two_tokenizers_are_refused(tmp_path: Path, name: str, content: dict[str, Any]) -> None:
    toy_base().save(str(tmp_path / "tokenizer.json"))
    same = {"added_tokens_decoder": {"256": {"content": "<|endoftext|>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(same))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|endoftext|>": 256}))
    assert Tokenizer.load(tmp_path).first_added_id == 257
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ForeignError, match=rf"{name} has '<\|\w+\|>' at \d+, \S+tokenizer\.json .*: they are of two"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("eos", [["<|endoftext|>"], 256, {"id": 256}])
def test_an_end_that_is_no_token_is_told_of(tmp_path: Path, eos: object) -> None:
    toy_base().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    with pytest.raises(ForeignError, match=r"tokenizer_config\.json: expected a token as eos_token, got"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tokenizer.json", b'{"a": 0', "is not JSON: expecting"),
        ("tokenizer.json", b'{"a": 0}', "is JSON, but no tokenizer: it has no model"),
        ("tokenizer.json", json.dumps(spec(type="BPE2")).encode(), r"is no tokenizer \(.*\); fetch it again, or"),
        ("tokenizer.json", b"", "is empty"),
        ("tokenizer.json", json.dumps(spec(vocab={}) | {"added_tokens": []}).encode(), ": .*holds no tokens"),
        ("tokenizer.json", json.dumps(spec() | {"decoder": None}).encode(), r": .*writes 'a \u0120 b' for 'a b'"),
        ("tokenizer.model", b"\n\x0e\n\x05<unk>\x15", "is SentencePiece's: save it where it was made"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_told_of(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ForeignError, match=rf"^{tmp_path}/{name} ?{told}"):
        Tokenizer.load(tmp_path / name)


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.txt", "qwen.tiktoken"])
def test_another_kind_of_tokenizer_names_the_way_to_this_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor .*save_pretrained\(folder\)"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("merges.txt", "#version: 0.2\nr a b\n"),
        ("merges.txt", "#version: 0.2\nqqq zzz\n"),
        ("merges.txt", "<!DOCTYPE html><html>"),
        ("vocab.json", "<!DOCTYPE html><html>"),
        ("vocab.json", '["a", "b"]'),
        ("vocab.json", '{"a": "b"}'),
    ],
)
def test_of_opts_two_files_the_broken_one_is_named(tmp_path: Path, name: str, content: str) -> None:
    write_opt(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ForeignError, match=rf"^{tmp_path}/{name} is "):
        Tokenizer.load(tmp_path)


def test_ids_of_two_tokenizers_are_compared() -> None:
    ours, theirs = words_tokenizer("a", "dog", "barks"), words_tokenizer("a", "dog")
    assert ours.differs(theirs) == "" and theirs.differs(ours) == "'barks' is 4 in the one and unknown in the other"
    assert ours.differs(words_tokenizer("dog")) == "'dog' is 2 in the one and 3 in the other"


def test_tokenizers_that_lie_here_are_compared_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(words_tokenizer("a", "dog").base_json())
    (tmp_path / "other.json").write_text(words_tokenizer("dog").base_json())
    (tmp_path / "broken.json").write_text("{")
    own = str(tmp_path / "own.json")
    assert other_words(str(tmp_path / "other.json"), own) == "'a' is 2 in the one and unknown in the other"
    for theirs in ("", own, "Qwen/Qwen2.5-0.5B", str(tmp_path / "gone.json"), str(tmp_path / "broken.json")):
        assert other_words(own, theirs) == "" and other_words(theirs, own) == "", theirs


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_with_a_mark_in_front_is_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "tokenizer.json").write_text(toy_base().to_str(), encoding=encoding)
    assert Tokenizer.load(tmp_path).encode("a dog") == toy_tokenizer().encode("a dog")


@pytest.mark.parametrize("index", [7, 400])
def test_an_added_token_stands_where_its_file_says_or_nowhere(tmp_path: Path, index: int) -> None:
    content = spec()
    content["added_tokens"].append(content["added_tokens"][0] | {"content": "[tone]", "id": index})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ForeignError, match=rf"tokenizer\.json has '\[tone\]' at {index}, where it cannot stand"):
        Tokenizer.load(tmp_path)


def test_the_end_is_no_token_of_audio(tmp_path: Path) -> None:
    base = toy_base()
    base.add_special_tokens(list(ADDED_TOKENS))
    base.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<audio>"}))
    with pytest.raises(ForeignError, match=r"eos_token of tokenizer_config\.json is <audio>"):
        Tokenizer.load(tmp_path)


def test_a_library_that_panics_is_told_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = spec() | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ForeignError, match=r"tokenizer\.json is no tokenizer \(Precompiled: "):
        Tokenizer.load(tmp_path)
    os.write(2, b"heard again")
    assert capfd.readouterr().err == "heard again", "and it prints nothing itself"
