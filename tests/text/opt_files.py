"""A tokenizer in the files that OPT comes with."""

import json
from pathlib import Path

from tokenizers import pre_tokenizers


def write_opt(folder: Path) -> None:
    """Files as OPT's repositories have them, with 50,265 entries, the special ones first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, "ra", "in", "rain", "<|endoftext|>"]
    words += [f"madeupword{i:05d}" for i in range(50_265 - len(words))]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr a\ni n\nra in\n")
    eos = {"__type": "AddedToken", "content": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos, "tokenizer_class": "GPT2Tokenizer"}))
