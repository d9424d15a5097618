"""Decoding in a batch, with caches, gives every prompt what it gets alone, decoded the slow way."""

import math
from dataclasses import replace
from typing import Any

import pytest

from megatron_af.config import ParallelConfig
from megatron_af.decoder import added_tokens
from megatron_af.inference.answers import score
from megatron_af.inference.decoding import Decoding
from megatron_af.model import build
from megatron_af.parallel import groups
from megatron_af.parallel.device import current_device
from tests import tiny
from tests.distributed import run_distributed
from tests.inference.prompts import (
    prompt_ids,
    read,
    slow_answer,
    slow_logits,
    tiny_model,
    tokenizer,
    written,
)

pytestmark = pytest.mark.slow

NEW = 5
FOUR = [0, 1, 2, 3]
GREEDY = Decoding(max_new_tokens=NEW)


def decode(rank: int, world_size: int, stop: int) -> Any:
    model, tokens = tiny_model(), tokenizer()
    tokens.eos_id = stop  # a word that ends an answer, so that rows end at different times
    widths: list[int] = []
    head = added_tokens.token_logits
    added_tokens.token_logits = lambda table, x_TH, *rest: widths.append(len(x_TH)) or head(table, x_TH, *rest)
    together = [answer.tokens for answer in written(model, tokens, FOUR, GREEDY)]
    added_tokens.token_logits = head
    twice = [answer.tokens for answer in written(model, tokens, [3, 1, 0, 1, 2], GREEDY)]
    alone = [written(model, tokens, [number], GREEDY)[0].tokens for number in FOUR]
    short = [answer.tokens for answer in written(model, tokens, FOUR, Decoding(max_new_tokens=2))]
    slow = [tuple(slow_answer(model, tokens, number, NEW)) for number in FOUR]
    return together, twice, alone, slow, short, widths


@pytest.mark.parametrize(("stop", "lengths"), [(-1, [5, 5, 5, 5]), (25, [5, 5, 5, 2]), (64, [0, 0, 0, 5])])
def test_batched_answers_are_those_of_single_prompts_decoded_the_slow_way(stop: int, lengths: list[int]) -> None:
    ((together, twice, alone, slow, short, widths),) = run_distributed(decode, 1, stop)
    assert together == alone == slow
    assert twice == [slow[number] for number in (3, 1, 0, 1, 2)]
    assert len(set(together)) > 1
    assert [len(answer) for answer in together] == lengths
    for longer, cut in zip(together, short, strict=True):
        assert longer[:2] == cut
    # The output layer ran for one position of each row that had not answered yet.
    assert widths == [sum(length >= step for length in lengths) for step in range(NEW)]


def learnt(rank: int, world_size: int, new: int) -> Any:
    """Answers of a model that has learnt 12 positions, to prompts of 5, 7, 10 and 10 tokens."""
    whole = tiny.config()
    lm = replace(whole.model.lm, family="opt", kv_heads=4, max_positions=12)
    groups.initialize(ParallelConfig(), 0)
    model = build(replace(whole, model=replace(whole.model, lm=lm)), tiny.VOCABULARY, current_device())
    tiny.fill(model)
    model.front.eval()
    tokens = tokenizer()
    tokens.eos_id = -1
    together = written(model, tokens, FOUR, Decoding(max_new_tokens=new))
    (searched,) = written(model, tokens, [3], Decoding(max_new_tokens=new, beams=2))
    options = [[[5, 6, 7]], [[5]], [[5], [5, 6, 7]], [[5, 6]]]
    scores = score(read(model, tokens, FOUR), [prompt_ids(tokens, number) for number in FOUR], options, tokens)
    return [(answer.tokens, answer.finish) for answer in (*together, searched)], [own and len(own) for own in scores]


def test_answers_end_where_the_learnt_positions_do_and_no_other_one_with_them() -> None:
    ((found, scored),) = run_distributed(learnt, 1, 20)
    assert [len(tokens) for tokens, _ in found] == [8, 6, 3, 3, 3] and {finish for _, finish in found} == {"length"}
    assert scored == [1, 1, None, 1], "the third's second option goes one position beyond"
    ((short, _),) = run_distributed(learnt, 1, 3)
    assert [tokens[:3] for tokens, _ in found] == [tokens for tokens, _ in short]


def special(rank: int, world_size: int) -> Any:
    """Answers of a model that always wants to write one of the special tokens, and its ends."""
    model, tokens = tiny_model(), tokenizer()
    head, said = added_tokens.token_logits, []
    for wanted in (tokens.audio_id, tokens.separator_id, tokens.pad_id, tokens.end_of_chunk_id, tokens.eos_id):

        def loud(table: Any, hidden_TH: Any, *rest: Any, wanted: int = wanted) -> Any:
            logits_TV = head(table, hidden_TH, *rest).clone()
            logits_TV[:, wanted] += 1e6
            return logits_TV

        added_tokens.token_logits = loud
        said.append(written(model, tokens, [0], Decoding(max_new_tokens=2))[0].text)
    added_tokens.token_logits = head
    return said


def test_marks_separators_and_padding_are_never_written() -> None:
    ((audio, separator, pad, chunk, end),) = run_distributed(special, 1)
    assert audio == separator == pad and len(audio.split()) == 2, "the best of what an answer may hold"
    assert (chunk, end) == ("", "")


MIXED = (
    Decoding(max_new_tokens=NEW, temperature=0.8, top_k=7, seed=3, logprobs=2),
    Decoding(max_new_tokens=NEW, logprobs=0),
    Decoding(max_new_tokens=3, temperature=1.5, top_p=0.6, seed=2**40),
    Decoding(max_new_tokens=NEW, repetition_penalty=1.7),
    Decoding(max_new_tokens=3, beams=3),
    Decoding(max_new_tokens=NEW, temperature=0.8, top_k=7, seed=4),
)


def by_layout(rank: int, world_size: int, parallel: ParallelConfig) -> Any:
    model, tokens = tiny_model(parallel), tokenizer()
    together = written(model, tokens, [0, 1, 2, 3, 1, 0], MIXED)
    alone = [
        written(model, tokens, [number], decoding)[0]
        for number, decoding in zip([0, 1, 2, 3, 1, 0], MIXED, strict=True)
    ]
    options = [[[5, 6], [7], [8, 9, 10]], [[1]], [], [[2, 3], [4, 4]]]
    scores = score(read(model, tokens, FOUR), [prompt_ids(tokens, number) for number in FOUR], options, tokens)
    return [vars(answer) for answer in together], [vars(answer) for answer in alone], scores


LAYOUTS = {"TP2": {"tensor": 2}, "PP2": {"pipeline": 2}, "TP2xPP2": {"tensor": 2, "pipeline": 2}}


def test_every_layout_and_every_crowd_gives_the_same() -> None:
    ((together, alone, scores),) = run_distributed(by_layout, 1, ParallelConfig())
    tokens = [answer["tokens"] for answer in together]
    assert tokens == [answer["tokens"] for answer in alone]
    assert tokens[0] != tokens[5], "another seed"
    assert [len(answer["scores"]) for answer in together] == [NEW, NEW, 0, 0, 0, 0]
    for layout in LAYOUTS.values():
        parallel = ParallelConfig(**layout)
        for there, there_alone, there_scores in run_distributed(
            by_layout, parallel.tensor * parallel.pipeline, parallel
        ):
            assert [answer["tokens"] for answer in there] == [answer["tokens"] for answer in there_alone] == tokens
            assert [len(own) for own in there_scores] == [3, 1, 0, 2]
            for own, wanted in zip(there_scores, scores, strict=True):
                assert own == pytest.approx(wanted, abs=1e-5)
            for one, other in zip(there, together, strict=True):
                ours = [token.logprob for token in one["scores"]]
                assert ours == pytest.approx([token.logprob for token in other["scores"]], abs=1e-5)


def against_slow(rank: int, world_size: int) -> Any:
    model, tokens = tiny_model(), tokenizer()
    told, wanted = [], []
    options = [[5, 6], [7], [8, 9, 10], []]
    own = score(read(model, tokens, [2]), [prompt_ids(tokens, 2)], [options], tokens)[0]
    slow = []
    for option in options:
        logprob_SV = slow_logits(model, tokens, 2, option).double().log_softmax(-1)
        slow.append(sum(float(logprob_SV[s, token]) for s, token in enumerate([*option, tokens.end_of_chunk_id])))
    for number, decoding in ((0, MIXED[0]), (1, MIXED[1])):
        (answer,) = written(model, tokens, [number], decoding)
        logprob_SV = slow_logits(model, tokens, number, answer.tokens).double().log_softmax(-1)
        told.append([token.logprob for token in answer.scores])
        wanted.append([float(logprob_SV[s, token]) for s, token in enumerate(answer.tokens)])
        ids = [*answer.tokens, *([tokens.end_of_chunk_id] if answer.finish == "stop" else [])]
        told[-1].append(math.log(answer.confidence))
        wanted[-1].append(sum(float(logprob_SV[s, token]) for s, token in enumerate(ids)))
        for s, token in enumerate(answer.scores):
            assert token.token == answer.tokens[s]
            best = logprob_SV[s].topk(decoding.logprobs or 0)
            names = [tokens.decode([index], skip_special=False) for index in best.indices.tolist()]
            assert [text for text, _ in token.top] == names
            assert [value for _, value in token.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    (repeats,) = written(model, tokens, [3], MIXED[3])
    penal: list[int] = []
    while len(penal) < NEW:
        logits_V = slow_logits(model, tokens, 3, penal)[-1]
        for token in {*prompt_ids(tokens, 3), *penal}:
            logits_V[token] = logits_V[token] / 1.7 if logits_V[token] > 0 else logits_V[token] * 1.7
        penal.append(int(logits_V.argmax()))
    return own, slow, told, wanted, list(repeats.tokens), penal


def test_scores_log_probabilities_and_penalties_are_those_of_the_slow_way() -> None:
    ((own, slow, told, wanted, repeats, penal),) = run_distributed(against_slow, 1)
    assert own == pytest.approx(slow, abs=1e-4)
    for one, other in zip(told, wanted, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert repeats == penal
