"""A byte-level tokenizer small enough for every test."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from megatron_af.text.tokenizer import Tokenizer


def toy_base() -> tokenizers.Tokenizer:
    """256 bytes and ``<|endoftext|>``, no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    base.add_special_tokens(["<|endoftext|>"])
    return base


def toy_tokenizer() -> Tokenizer:
    return Tokenizer(toy_base())


def words_tokenizer(*words: str) -> Tokenizer:
    """One id a word, and one for all words that it does not know."""
    vocabulary = {"<|endoftext|>": 0, "<unknown>": 1, **{word: 2 + i for i, word in enumerate(words)}}
    base = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    base.add_special_tokens(["<|endoftext|>"])
    return Tokenizer(base)
