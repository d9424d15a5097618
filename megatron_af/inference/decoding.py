"""How an answer is decoded: greedily, drawn at random, or searched for; and what a request may ask besides.

    Decoding(max_new_tokens=64)                                             # greedy
    Decoding(temperature=0.7, top_p=0.9, seed=3, stop=("\\n",), logprobs=5)
    Decoding(beams=4)
    Decoding(unsure="none of these")                                        # where the model is not sure enough
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_af.foreign import is_finite


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Of one answer. The same settings give the same answer, whatever is decoded beside it."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    """0: always the likeliest token."""
    top_k: int = 0
    """Draw from so many of the likeliest tokens; 0: from all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    repetition_penalty: float = 1.0
    """Divides the positive logits, and multiplies the negative ones, of tokens in the prompt and the answer so far
    (Keskar et al. 2019, CTRL)."""
    beams: int = 1
    """Above 1: beam search, of so many answers at a time, by log-probability / tokens ** ``length_penalty``."""
    length_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    """Texts that end the answer in front of them."""
    seed: int = 0
    logprobs: int | None = None
    """Tell each token's log-probability, and those of so many of the likeliest ones."""
    unsure: str = ""
    """Said in place of an answer that is less likely than ``least_confidence``; it is then told in one piece, at its
    end. Empty: every answer is told."""
    least_confidence: float | None = None
    """Probability of the whole answer, from 0 to 1; None: what the model's own development rows ask for
    (``curriculum.STAGE.calibrate``)."""

    def problems(self) -> Iterator[str]:
        """What cannot be decoded so: name, what was expected, what was got."""
        for name, first in (("max_new_tokens", 1), ("top_k", 0), ("beams", 1), ("seed", 0)):
            value = getattr(self, name)
            if not _is_whole(value) or value < first:
                yield f"{name}: expected a whole number from {first} on, got {value!r:.80}"
        for name, least, most in (("temperature", 0.0, math.inf), ("length_penalty", -math.inf, math.inf)):
            value = getattr(self, name)
            if not is_finite(value) or not least <= value <= most:
                yield f"{name}: expected a number{' from 0 on' if least == 0 else ''}, got {value!r:.80}"
        if not is_finite(self.top_p) or not 0 < self.top_p <= 1:
            yield f"top_p: expected a number above 0, at most 1, got {self.top_p!r:.80}"
        if not is_finite(self.repetition_penalty) or self.repetition_penalty <= 0:
            yield f"repetition_penalty: expected a number above 0, got {self.repetition_penalty!r:.80}"
        if self.logprobs is not None and (not _is_whole(self.logprobs) or not 0 <= self.logprobs <= MOST_LOGPROBS):
            yield f"logprobs: expected a whole number from 0 to {MOST_LOGPROBS}, got {self.logprobs!r:.80}"
        if not isinstance(self.unsure, str):
            yield f"unsure: expected a text to say in place of an answer, got {self.unsure!r:.80}"
        if self.least_confidence is not None:
            if not is_finite(self.least_confidence) or not 0 <= self.least_confidence <= 1:
                yield f"least_confidence: expected a number from 0 to 1, got {self.least_confidence!r:.80}"
            if not self.unsure:
                yield "least_confidence: expected unsure beside it, which says what is told in place of an answer"
        if any(not isinstance(text, str) or not text for text in self.stop):
            yield f"stop: expected texts that are not empty, got {list(self.stop)!r:.80}"
        if _is_whole(self.seed) and self.seed >= 2**63:
            yield f"seed: expected less than 2^63, got {self.seed}"
        if self.beams != 1 and self.temperature:
            yield f"temperature: beam search (beams = {self.beams}) draws nothing, expected 0, got {self.temperature!r}"
        if self.beams != 1 and self.logprobs is not None:
            yield f"logprobs: not told of a searched answer (beams = {self.beams}); leave the one or the other out"


MOST_LOGPROBS = 20


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

