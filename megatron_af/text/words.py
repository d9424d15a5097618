"""Word-level tokenizers that fit their texts: one id a word, for language models small enough to learn from scratch.

    build(["a dog barks", "rain"]).save("tokenizer.json")
    extended, new = extend(tokenizers.Tokenizer.from_file("tokenizer.json"), ["a cat purrs"])     # new: cat, purrs

A word keeps its id for ever: an extended tokenizer has the old words where they were and the new ones behind them, so
weights that were trained with the old one say with it what they said before.
"""

import json
from collections.abc import Iterable

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from megatron_af.text.tokenizer import ADDED_TOKENS

END, UNKNOWN = "<|endoftext|>", "<unknown>"
WORD = r"\w+(?:['’.\-]\w+)*|[^\w\s]+"
"""A word with what joins its parts (``air-conditioner``, ``it's``, ``1.5``), or a run of other marks."""


class NoWords(ValueError):
    """A tokenizer that takes no further words; the message says why and what to do."""


def build(texts: Iterable[str]) -> tokenizers.Tokenizer:
    """A tokenizer of all words and punctuation in ``texts``, in small letters, ending sequences as Qwen2.5's does."""
    base = tokenizers.Tokenizer(models.WordLevel({END: 0, UNKNOWN: 1}, unk_token=UNKNOWN))
    base.normalizer = normalizers.Lowercase()
    base.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    return extend(base, texts)[0]


def extend(base: tokenizers.Tokenizer, texts: Iterable[str]) -> tuple[tokenizers.Tokenizer, list[str]]:
    """The tokenizer with every word of ``texts``, split as it splits them, and those that are new, in their order.

    Raises:
        NoWords: it is no word-level tokenizer, or Audio Flamingo's added tokens stand in it already.
    """
    if not isinstance(base.model, models.WordLevel):
        raise NoWords(
            f"its model is {type(base.model).__name__}, not WordLevel: it makes words of pieces and lacks none; use it "
            "as it is (data.tokenizer)"
        )
    vocabulary = base.get_vocab(with_added_tokens=True)
    if held := [token for token in ADDED_TOKENS if token in vocabulary]:
        raise NoWords(
            f"it holds {held[0]} already, behind which no word can stand; extend the language model's own tokenizer"
        )
    known, first = set(vocabulary), max(vocabulary.values()) + 1
    new = sorted({word for text in texts for word in _split(base, text)} - known)
    spec = json.loads(base.to_str())
    # Of those that stand beside the vocabulary the library counts ids anew when there are more words: they stand in it.
    spec["model"]["vocab"] |= {token["content"]: token["id"] for token in spec["added_tokens"]}
    spec["model"]["vocab"] |= {word: first + place for place, word in enumerate(new)}
    return tokenizers.Tokenizer.from_str(json.dumps(spec)), new


def _split(base: tokenizers.Tokenizer, text: str) -> list[str]:
    text = base.normalizer.normalize_str(text) if base.normalizer else text
    return [word for word, _ in base.pre_tokenizer.pre_tokenize_str(text)] if base.pre_tokenizer else [text]
