"""Beam search finds the likeliest answer where it keeps every beginning, and never a less likely one than greedy's."""

import math
from typing import Any

import pytest

from megatron_af.inference.decoding import Decoding
from tests.distributed import run_distributed
from tests.inference.prompts import slow_logits, tiny_model, tokenizer, written

pytestmark = pytest.mark.slow


def searched(rank: int, world_size: int) -> Any:
    """The best of all answers of at most two tokens, searched with as many beams as there are first tokens."""
    model, tokens = tiny_model(), tokenizer()
    ends = (tokens.end_of_chunk_id, tokens.eos_id)
    found = []
    for length_penalty in (0.0, 1.0, -2.0):
        decoding = Decoding(max_new_tokens=2, beams=92, length_penalty=length_penalty)
        (answer,) = written(model, tokens, [2], decoding)
        first_V = slow_logits(model, tokens, 2, []).double().log_softmax(-1)[0]
        every: list[tuple[float, tuple[int, ...]]] = [(float(first_V[end]), ()) for end in ends]
        for token in range(89):
            second_V = first_V[token] + slow_logits(model, tokens, 2, [token])[-1].double().log_softmax(-1)
            cost = 2**length_penalty
            every += [(float(second_V[end]) / cost, (token,)) for end in ends]
            every += [(float(second_V[other]) / cost, (token, other)) for other in range(89)]
        found.append((answer.tokens, max(every)[1]))
    return found


def test_a_search_that_keeps_all_beginnings_finds_the_best_answer() -> None:
    (found,) = run_distributed(searched, 1)
    assert all(ours == best for ours, best in found), found
    assert len({best for _, best in found}) > 1, "the penalty decides"


def widths(rank: int, world_size: int) -> Any:
    """Log-probabilities of answers by number of beams, of answers that may end at a common word."""
    model, tokens = tiny_model(), tokenizer()
    tokens.eos_id = 25
    found = []
    for number in range(4):
        totals = []
        for beams in (1, 2, 4, 8):
            (answer,) = written(model, tokens, [number], Decoding(max_new_tokens=4, beams=beams, length_penalty=0.0))
            logprob_SV = slow_logits(model, tokens, number, answer.tokens).double().log_softmax(-1)
            ids = [*answer.tokens, *([] if len(answer.tokens) == 4 else [25])]
            totals.append(sum(float(logprob_SV[s, token]) for s, token in enumerate(ids)))
            assert math.log(answer.confidence) == pytest.approx(totals[-1], abs=1e-5)
        found.append(totals)
    return found


def test_the_widest_search_is_at_least_as_good_as_greedy() -> None:
    (found,) = run_distributed(widths, 1)
    assert all(totals[-1] >= totals[0] - 1e-9 for totals in found), found
    assert any(totals[-1] > totals[0] + 1e-6 for totals in found), "and finds better ones"


def penalized_search(rank: int, world_size: int) -> Any:
    """Confidences of searched answers under a repetition penalty, and those of the same tokens by the model itself."""
    model, tokens = tiny_model(), tokenizer()
    tokens.eos_id = 25
    found = []
    for number, stop in ((0, ()), (1, ()), (2, ("w",))):
        decoding = Decoding(max_new_tokens=4, beams=3, repetition_penalty=1.7, length_penalty=2.0, stop=stop)
        (answer,) = written(model, tokens, [number], decoding)
        logprob_SV = slow_logits(model, tokens, number, answer.tokens).double().log_softmax(-1)
        ends = answer.finish == "stop" and not stop
        ids = [*answer.tokens, *([25] if ends else [])]
        found.append((answer.confidence, math.exp(sum(float(logprob_SV[s, token]) for s, token in enumerate(ids)))))
    return found


def test_a_searched_answer_is_as_sure_as_the_model_is_before_penalties() -> None:
    (found,) = run_distributed(penalized_search, 1)
    assert [ours for ours, _ in found] == pytest.approx([model for _, model in found], rel=1e-4), found
