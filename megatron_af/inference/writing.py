"""An answer while it is being written: its tokens, where it ends, and what of its text can already be told.

    writing = Writing(tokenizer, decoding, prompt_ids, tell=print)
    while writing.add(token, score): ...            # prints pieces, then the answer
    writing.answer

A token may end in the middle of a letter, a stop text may begin in one token and end in another.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from megatron_af.inference.decoding import Decoding
from megatron_af.text.tokenizer import Tokenizer

UNFINISHED = "\ufffd"
"""How the first bytes of a letter are decoded, as long as its others are missing."""



@dataclass(frozen=True, kw_only=True)
class TokenScore:
    """A token of an answer, with log-probabilities among all that could have been written there."""

    token: int
    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    """The likeliest ones."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    text: str
    tokens: tuple[int, ...]
    finish: Literal["stop", "length", "gone"]
    """It ended; it had as many tokens as were asked for; or nobody wanted the rest."""
    prompt_tokens: int
    scores: tuple[TokenScore, ...] = ()
    """Of each token, where ``Decoding.logprobs`` asks for them."""
    confidence: float = 1.0
    """Probability of all its tokens and its end, as the model finds them before ``temperature`` and penalties."""
    withheld: str | None = None
    """What it would have been, where ``Decoding.unsure`` is told in its place."""

    @property
    def said(self) -> str:
        """What the model wrote, whether it is told or not."""
        return self.text if self.withheld is None else self.withheld


@dataclass(frozen=True, kw_only=True)
class Piece:
    """More of an answer's text."""

    text: str
    scores: tuple[TokenScore, ...] = ()
    """Of the tokens since the last piece, where they are asked for."""


type Tell = Callable[[Piece | Answer], bool | None]
"""Told an answer piece by piece as it comes, and whole at its end; False says that nobody wants the rest."""


class Writing:
    """
    Args:
        tell: told the text piece by piece; what may still turn out to be part of a stop text, of a letter, or space at
            the end, is told when it has turned out not to be.
    """

    def __init__(self, tokenizer: Tokenizer, decoding: Decoding, prompt: Sequence[int], tell: Tell | None) -> None:
        self.decoding, self.ids = decoding, list[int]()
        self.generator = torch.Generator().manual_seed(decoding.seed)
        self._tokenizer, self._prompt, self._tell = tokenizer, prompt, tell
        self._scores: list[TokenScore] = []
        self._finish: Literal["stop", "length", "gone"] = "length"
        self._text, self._told, self._told_scores = "", 0, 0
        self._logprob = 0.0
        self._withheld: str | None = None

    @property
    def seen(self) -> list[int]:
        return [*self._prompt, *self.ids]

    def add(self, token: int, score: TokenScore | None = None, logprob: float = 0.0) -> bool:
        """One more token and its log-probability; whether the answer goes on."""
        self._logprob += logprob
        if token in (self._tokenizer.end_of_chunk_id, self._tokenizer.eos_id):
            return self._end("stop")
        self.ids.append(token)
        if score is not None:
            self._scores.append(score)
        if self._tell is not None or self.decoding.stop:
            self._text = self._tokenizer.decode(self.ids).lstrip()
            begin = min((at for stop in self.decoding.stop if (at := self._text.find(stop)) >= 0), default=-1)
            if begin >= 0:
                self._text = self._text[:begin]
                return self._end("stop", read=False)
            if not self.decoding.unsure and not self._say(self._text[: self._settled()]):
                return self._end("gone")
        if len(self.ids) == self.decoding.max_new_tokens:
            return self._end("length")
        return True

    @property
    def answer(self) -> Answer:
        return Answer(
            text=self._text,
            tokens=tuple(self.ids),
            finish=self._finish,
            prompt_tokens=len(self._prompt),
            scores=tuple(self._scores),
            confidence=math.exp(self._logprob),
            withheld=self._withheld,
        )

    def _settled(self) -> int:
        """Letters of the text that nothing will change."""
        text = self._text.rstrip(UNFINISHED).rstrip()
        held = (cut for stop in self.decoding.stop for cut in range(1, len(stop)) if self._text.endswith(stop[:cut]))
        return min(len(text), len(self._text) - max(held, default=0))

    def _end(self, finish: Literal["stop", "length", "gone"], *, read: bool = True) -> bool:
        if read:
            self._text = self._tokenizer.decode(self.ids)
        self._text, self._finish = self._text.strip(), finish
        if self.decoding.unsure and math.exp(self._logprob) < (self.decoding.least_confidence or 0.0):
            self._text, self._withheld = self.decoding.unsure, self._text
        if finish != "gone":
            self._say(self._text)
        if self._tell is not None:
            self._tell(self.answer)
        return False

    def _say(self, text: str) -> bool:
        piece, self._told = text[self._told :], max(self._told, len(text))
        if self._tell is None or not piece:
            return True
        scores, self._told_scores = tuple(self._scores[self._told_scores :]), len(self._scores)
        return self._tell(Piece(text=piece, scores=scores)) is not False
