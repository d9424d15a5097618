"""Paraphrases and hard negatives of real captions, written by a language model (``generation.py``).

    report = expand(ExpansionConfig(source="clotho.jsonl", output="clotho_expanded.jsonl", endpoint=…, model=…))

AF-CLAP's caption expansion (Ghosh et al. 2025, section 3): M - 1 paraphrases of each caption, and N negatives in which
the order of events or the binding of attributes is altered.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from megatron_af.data.rows import Row
from megatron_af.prepare.generation import Found, GenerationConfig, Report, Task, generate, plain_words

INSTRUCTIONS = """\
You write training captions for a model that hears. For each caption in the list, write {paraphrases} paraphrases and \
{negatives} negatives.
A paraphrase says exactly the same in other words: the same sounds, in the same order, with the same attributes \
(loudness, pitch, material, number, place). It may name them in another sequence only if it states their order in time.
A negative is as likely a caption as the original, in almost the same words, but wrong. Change one thing:
"order": the events happen in another order. Only where the caption tells an order or events at the same time.
"attribute": an attribute belongs to another sound than in the caption, or becomes its opposite.
Never add or leave out a sound, and never write "not" or "no" to make a negative.
Answer with JSON only, one entry for every id:
{{"captions": [{{"id": 0, "paraphrases": ["…"], "negatives": [{{"text": "…", "change": "order"}}]}}]}}"""
CHANGES = ("order", "attribute")
LONGEST_GROWTH = 3.0
"""A text of more than three times the caption's words (and more than 12 words on top) is chatter, not a caption."""


@dataclass(frozen=True, kw_only=True)
class ExpansionConfig(GenerationConfig):
    """The first caption of each row is expanded."""

    paraphrases: int = 2
    """M - 1."""
    negatives: int = 9
    """For the whole row: M x N in the paper's words."""


def expand(config: ExpansionConfig, watch: Callable[[int, int], None] = lambda done, rows: None) -> Report:
    """Expand every row of ``config.source``; see :func:`megatron_af.prepare.generation.generate`."""
    return generate(CaptionExpansion(config), config, watch)


class CaptionExpansion(Task):
    reply_key = "captions"

    def __init__(self, config: ExpansionConfig) -> None:
        self._config = config
        self.instructions = INSTRUCTIONS.format(paraphrases=config.paraphrases, negatives=config.negatives)
        self.settings = (config.paraphrases, config.negatives)

    def asked(self, row: Row) -> dict[str, Any] | str:
        return {"caption": row.captions[0]} if row.captions else "the row has no caption"

    def made(self, row: Row, found: Found) -> Row:
        """The row with its first caption, the paraphrases, and the negatives with their kinds."""
        return replace(
            row,
            captions=(row.captions[0], *found["paraphrases"]),
            negatives=tuple(text for text, _ in found["negatives"]),
            meta={**row.meta, "negative_kinds": [change for _, change in found["negatives"]]},
        )

    def check(self, entry: dict[str, Any], row: Row) -> Found | str:
        caption = row.captions[0]
        paraphrases = entry.get("paraphrases")
        negatives = entry.get("negatives")
        if not isinstance(paraphrases, list) or not isinstance(negatives, list):
            return "paraphrases and negatives must be lists"
        records = [n if isinstance(n, dict) else {} for n in negatives]
        texts = [*paraphrases, *(n.get("text") for n in records)]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            return "a text is empty or missing"
        pairs = [(str(n["text"]).strip(), str(n.get("change"))) for n in records]
        if any(change not in CHANGES for _, change in pairs):
            return f"a negative's change is none of {', '.join(CHANGES)}"
        most = max(LONGEST_GROWTH * len(caption.split()), len(caption.split()) + 12)
        if any(len(text.split()) > most for text in texts):
            return "a text is far longer than the caption"
        told = _distinct([caption, *paraphrases])[1:]
        if len(told) < self._config.paraphrases:
            return f"{len(told)} different paraphrases instead of {self._config.paraphrases}"
        meant = {plain_words(text) for text in [caption, *told]}
        if any(plain_words(text) in meant for text, _ in pairs):
            return "a negative equals the caption or a paraphrase"
        different = _distinct(text for text, _ in pairs)
        wrong = [(text, dict(pairs)[text]) for text in different]
        if len(wrong) < self._config.negatives:
            return f"{len(wrong)} different negatives instead of {self._config.negatives}"
        return {"paraphrases": told[: self._config.paraphrases], "negatives": wrong[: self._config.negatives]}


def _distinct(texts: Iterable[str]) -> list[str]:
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(plain_words(text), text.strip())
    return list(found.values())
