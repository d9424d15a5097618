"""Beam search: the likeliest whole answer among those that the likeliest beginnings lead to.

    answer = search(reading, prompt, Decoding(beams=4), tokenizer)

An answer's score is its log-probability, the end's included, over its tokens to the power of ``length_penalty``. The
search ends when as many answers are complete as there are beams and no beginning scores better than the worst of them,
or at the longest length, where what is incomplete competes as it is.

Shapes: K beams, V vocabulary.
"""

import heapq
from collections.abc import Sequence

import torch

from megatron_af.inference.decoding import Decoding
from megatron_af.inference.logits import penalized, without_never
from megatron_af.inference.reading import Reading
from megatron_af.inference.writing import Answer, Tell, Writing
from megatron_af.text.tokenizer import Tokenizer

type Beginning = tuple[float, list[int], list[float]]
"""Its score, its tokens, and the log-probability of each as the model finds it, before the penalty."""


def search(
    reading: Reading, prompt: Sequence[int], decoding: Decoding, tokenizer: Tokenizer, tell: Tell | None = None
) -> Answer:
    """
    Args:
        reading: one row that has heard its audio, and read nothing or the beginning of the prompt.
    """
    width, ends = decoding.beams, (tokenizer.end_of_chunk_id, tokenizer.eos_id)
    done: list[Beginning] = []
    beams: list[Beginning] = [(0.0, [], [])]
    logits_KV = reading.read_on([prompt])
    for length in range(1, decoding.max_new_tokens + 1):
        logits_KV = without_never(logits_KV, tokenizer)
        found_KV = logits_KV.double().log_softmax(-1)
        seen = [[*prompt, *written] for _, written, _ in beams]
        logits_KV = torch.stack(
            [penalized(x_V, ids, decoding.repetition_penalty) for x_V, ids in zip(logits_KV, seen, strict=True)]
        )
        total_KV = logits_KV.double().log_softmax(-1)
        total_KV += torch.tensor([score for score, *_ in beams], device=total_KV.device)[:, None]
        best = total_KV.flatten().topk(min(2 * width, total_KV.numel()))
        logprobs = found_KV.flatten()[best.indices].tolist()
        ranked = [
            (score, *divmod(place, total_KV.shape[1]), logprob)
            for score, place, logprob in zip(best.values.tolist(), best.indices.tolist(), logprobs, strict=True)
            if score > -torch.inf
        ]
        more: list[tuple[float, int, int, float]] = []
        for rank, (score, beam, token, logprob) in enumerate(ranked):
            if token in ends:
                if rank < width:
                    whole = [*beams[beam][1], token], [*beams[beam][2], logprob]
                    done.append((score / length**decoding.length_penalty, *whole))
            elif len(more) < width:
                more.append((score, beam, token, logprob))
        done = heapq.nlargest(width, done)
        beams = [(score, [*beams[b][1], token], [*beams[b][2], logprob]) for score, b, token, logprob in more]
        if not beams or length == decoding.max_new_tokens:
            break
        if len(done) == width and done[-1][0] >= beams[0][0] / length**decoding.length_penalty:
            beams = []
            break
        reading.select([beam for _, beam, *_ in more])
        logits_KV = reading.read([[token] for _, _, token, _ in more])
    cut = decoding.max_new_tokens**decoding.length_penalty
    _, *written = max([*done, *((score / cut, *beginning) for score, *beginning in beams)])
    writing = Writing(tokenizer, decoding, prompt, tell)
    for token, logprob in zip(*written, strict=True):
        if not writing.add(token, logprob=logprob):
            break
    return writing.answer
