"""A toy text tower in a folder."""

from pathlib import Path

import tokenizers
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

WORDS = ["<pad>", "</s>", "<unk>", "a", "dog", "barks", "then", "rain", "falls"]


def word_level() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tokenizer


def save_tower(folder: Path, kind: str) -> None:
    if kind == "t5":
        T5EncoderModel(T5Config(vocab_size=9, d_model=16, d_kv=8, num_layers=1, num_heads=2, d_ff=32)).save_pretrained(
            folder
        )
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        BertModel(BertConfig(vocab_size=9, **sizes)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=word_level(), pad_token="<pad>", eos_token="</s>").save_pretrained(folder)
