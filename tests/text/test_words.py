"""Tokenizers of whole words: made, extended without moving a word, and refused where nothing fits."""

import pytest
import tokenizers

from megatron_af.text.tokenizer import ADDED_TOKENS, Tokenizer
from megatron_af.text.words import END, UNKNOWN, NoWords, build, extend
from tests.text.toy_tokenizer import toy_base


def test_words_of_the_texts_are_ids_in_small_letters() -> None:
    base = build(["A dog barks, it's an air-conditioner", "1.5 s!"])
    words = ["!", ",", "1.5", "a", "air-conditioner", "an", "barks", "dog", "it's", "s"]
    assert sorted(base.get_vocab(), key=base.token_to_id) == [END, UNKNOWN, *words]
    tokenizer = Tokenizer(base)
    assert tokenizer.decode(tokenizer.encode("An air-conditioner barks")) == "an air-conditioner barks"
    assert tokenizer.unknown_words("a cat") == ["cat"] and tokenizer.eos == END


def test_an_extended_tokenizer_moves_no_word() -> None:
    base = build(["dog", "rain"])
    before = base.get_vocab()
    longer, new = extend(base, ["a dog", "a CAT"])
    assert new == ["a", "cat"] and longer.get_vocab() == before | {"a": 4, "cat": 5}
    assert base.get_vocab() == before, "what it was made of is as it was"
    assert Tokenizer(longer).unknown_words("a cat, a dog") == [","]
    again, none = extend(longer, ["cat dog"])
    assert none == [] and again.get_vocab() == longer.get_vocab()


def test_nor_one_that_stands_beside_the_vocabulary() -> None:
    """Of another maker's tokenizer: the library would give it a new id, and one that a word may have."""
    base = build(["dog"])
    base.add_tokens(["rain"])
    longer, new = extend(base, ["a cat"])
    assert new == ["a", "cat"] and longer.get_vocab() == base.get_vocab() | {"a": 4, "cat": 5}
    assert longer.get_vocab()["rain"] == 3


def test_words_are_split_as_the_tokenizer_splits_them() -> None:
    base = build(["x"])
    base.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    _, new = extend(base, ["barks, loudly"])
    assert new == ["barks,", "loudly"]


def test_tokenizers_that_take_no_words_say_why() -> None:
    with pytest.raises(NoWords, match=r"its model is BPE, not WordLevel: .* use it as it is \(data.tokenizer\)"):
        extend(toy_base(), ["a"])
    base = build(["a"])
    base.add_special_tokens(list(ADDED_TOKENS))
    with pytest.raises(NoWords, match=r"holds <audio> already"):
        extend(base, ["b"])
