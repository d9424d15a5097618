"""From a model's logits to the next token, as its `Decoding` wants it.

    logits_V = penalized(without_never(logits_BV, tokenizer)[0], seen, decoding.repetition_penalty)
    token = drawn(logits_V, decoding, generator)        # or logits_V.argmax()

The order of what changes the logits is that of transformers' generate: repetition penalty, temperature, top k, top p.
Shapes: B rows, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_af.inference.decoding import Decoding
from megatron_af.text.tokenizer import Tokenizer


def without_never(logits_BV: Tensor, tokenizer: Tokenizer) -> Tensor:
    """What is no part of an answer has no probability."""
    never = torch.tensor(tokenizer.never_written(logits_BV.shape[-1]), device=logits_BV.device)
    return logits_BV.index_fill(-1, never, -torch.inf)


def penalized(logits_V: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """Logits [V] with those of tokens that were seen made smaller."""
    if penalty == 1:
        return logits_V
    seen_N = torch.tensor(sorted(set(seen)), device=logits_V.device)
    seen_N = seen_N[seen_N < len(logits_V)]
    some_N = logits_V[seen_N]
    return logits_V.index_put((seen_N,), torch.where(some_N > 0, some_N / penalty, some_N * penalty))


def drawn(logits_V: Tensor, decoding: Decoding, generator: torch.Generator) -> int:
    """A token, at random; one number of the generator each time, on the host, so that every device draws the same."""
    logit_V, token_V = (logits_V.double() / decoding.temperature).sort(descending=True, stable=True)
    if decoding.top_k:
        logit_V = logit_V[: decoding.top_k]
    upto_V = logit_V.softmax(-1).cumsum(-1)
    if decoding.top_p < 1:
        # Up to and with the token at which the probability is reached.
        upto_V = upto_V[: int((upto_V < decoding.top_p).sum()) + 1]
    point = float(torch.rand((), generator=generator, dtype=torch.float64)) * float(upto_V[-1])
    place = int((upto_V <= point).sum())
    return int(token_V[min(place, len(upto_V) - 1)])
