"""Answers to a batch of prompts, and how likely given ones are.

    answers = write(reading, prompts, [Decoding(max_new_tokens=4)] * len(prompts), tokenizer)
    logprobs = score(reading, prompts, options, tokenizer)      # of each prompt's options

Prompts end where an answer begins (``render(..., prompt=True)``). A row that has answered leaves the batch, so that one
long answer does not make all others wait; prompts that are asked several times, or have several options, are read once.
Special tokens, and rows of the table that have no token, are no part of an answer and never written.

Shapes: B rows, S text positions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import batched

import torch
from torch import Tensor

from megatron_af.inference.beams import search
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.logits import drawn, penalized, without_never
from megatron_af.inference.reading import Reading
from megatron_af.inference.writing import Answer, Tell, TokenScore, Writing
from megatron_af.text.tokenizer import Tokenizer

OPTIONS_TOGETHER = 64
"""Options that are read in one call."""


def write(
    reading: Reading,
    prompts: Sequence[Sequence[int]],
    decodings: Sequence[Decoding],
    tokenizer: Tokenizer,
    *,
    tell: Sequence[Tell | None] = (),
) -> list[Answer]:
    """An answer to each prompt, in order.

    Args:
        reading: has heard the audio of each row, and read nothing or the beginning of its prompt.
        tell: of each row, told its text as it comes; beams are told when the best is found.
    """
    tells = list(tell) or [None] * len(prompts)
    decodings = [within(reading, *asked) for asked in zip(prompts, decodings, strict=True)]
    searched = [row for row, decoding in enumerate(decodings) if decoding.beams > 1]
    answers: dict[int, Answer] = {}
    for row in searched:
        alone = reading.copy()
        alone.select([row])
        answers[row] = search(alone, prompts[row], decodings[row], tokenizer, tells[row])
    rest = [row for row in range(len(prompts)) if row not in answers]
    if rest:
        writings = {row: Writing(tokenizer, decodings[row], prompts[row], tells[row]) for row in rest}
        if searched:
            reading.select(rest)
        together = Answering(tokenizer)
        together.join(reading, [prompts[row] for row in rest], list(writings.values()))
        while together.rows:
            together.step()
        answers |= {row: writing.answer for row, writing in writings.items()}
    return [answers[row] for row in range(len(prompts))]


def within(reading: Reading, prompt: Sequence[int], decoding: Decoding) -> Decoding:
    """How an answer is decoded that ends where the language model has learnt no more positions: of rows that are
    answered together, one that went beyond them would end all."""
    room = reading.room(prompt)
    if room is None or decoding.max_new_tokens <= room:
        return decoding
    return replace(decoding, max_new_tokens=room)


class Answering:
    """Rows that are answered together, each at its own place in its answer; others may join at any time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._writings: list[Writing] = []
        self._reading: Reading | None = None
        self._logits_BV: Tensor | None = None

    @property
    def rows(self) -> int:
        return len(self._writings)

    def join(self, reading: Reading, prompts: Sequence[Sequence[int]], writings: Sequence[Writing]) -> None:
        """More rows.

        Args:
            reading: has heard their audio, and read nothing or the beginning of their prompts.
        """
        logits_BV = read_once(reading, prompts)
        if self._reading is None or self._logits_BV is None:
            self._reading, self._logits_BV = reading, logits_BV
        else:
            self._reading.join(reading)
            self._logits_BV = torch.cat([self._logits_BV, logits_BV])
        self._writings += writings

    def step(self) -> None:
        """One more token of each row; those that have ended leave."""
        assert self._reading is not None and self._logits_BV is not None, "somebody has joined"
        chosen = choose(self._logits_BV, self._writings, self._tokenizer)
        tokens = [token for token, _, _ in chosen]
        on = [b for b, (writing, choice) in enumerate(zip(self._writings, chosen, strict=True)) if writing.add(*choice)]
        if len(on) < len(self._writings):
            self._writings = [self._writings[b] for b in on]
            if not on:
                self._reading = self._logits_BV = None
                return
            self._reading.select(on)
        self._logits_BV = self._reading.read([[tokens[b]] for b in on])


def read_once(reading: Reading, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Logits [B, V] behind each prompt; rows that read the same of the same recordings do so together."""
    keys = [(tuple(ids), heard) for ids, heard in zip(prompts, reading.recordings, strict=True)]
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    distinct = sorted(first.values())
    place = {keys[row]: index for index, row in enumerate(distinct)}
    if len(distinct) == len(prompts):
        return reading.read_on(prompts)
    reading.select(distinct)
    logits_BV = reading.read_on([prompts[row] for row in distinct])
    again = [place[key] for key in keys]
    reading.select(again)
    return logits_BV[torch.tensor(again, device=logits_BV.device)]


def choose(
    logits_BV: Tensor, writings: Sequence[Writing], tokenizer: Tokenizer
) -> list[tuple[int, TokenScore | None, float]]:
    """The next token of each row, its score where that is asked for, and its log-probability."""
    logits_BV = without_never(logits_BV, tokenizer)
    likeliest: list[int] = logits_BV.argmax(-1).tolist()
    chosen: list[tuple[int, TokenScore | None]] = []
    for logits_V, token, writing in zip(logits_BV, likeliest, writings, strict=True):
        decoding = writing.decoding
        if decoding.temperature or decoding.repetition_penalty != 1:
            changed_V = penalized(logits_V, writing.seen, decoding.repetition_penalty)
            token = drawn(changed_V, decoding, writing.generator) if decoding.temperature else int(changed_V.argmax())
        score = None if decoding.logprobs is None else _score(logits_V, token, decoding.logprobs, tokenizer)
        chosen.append((token, score))
    token_B1 = torch.tensor([[token] for token, _ in chosen], device=logits_BV.device)
    logprob_B = logits_BV.float().gather(1, token_B1)[:, 0] - logits_BV.float().logsumexp(1)
    return [(*choice, logprob) for choice, logprob in zip(chosen, logprob_B.tolist(), strict=True)]


def _score(logits_V: Tensor, token: int, top: int, tokenizer: Tokenizer) -> TokenScore:
    logprob_V = logits_V.log_softmax(-1)
    best = logprob_V.topk(min(top, len(logprob_V)))
    ranked = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return TokenScore(
        token=token,
        text=tokenizer.decode([token], skip_special=False),
        logprob=float(logprob_V[token]),
        top=tuple((tokenizer.decode([other], skip_special=False), value) for other, value in ranked),
    )


def score(
    reading: Reading, prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]], tokenizer: Tokenizer
) -> list[list[float] | None]:
    """Log-probability of each option as the whole answer to its prompt, its end included; None for the options of a
    prompt one of which would go beyond the positions that the language model has learnt.

    Args:
        reading: has heard the audio of each prompt and read nothing.
        options: of each prompt, their token ids without special tokens.
    """
    behind_BV = without_never(read_once(reading, prompts), tokenizer).log_softmax(-1)
    fits = [_fit(reading, prompt, own) for prompt, own in zip(prompts, options, strict=True)]
    found: dict[int, list[float]] = {row: [] for row, fit in enumerate(fits) if fit}
    asked = [(row, [*option, tokenizer.end_of_chunk_id]) for row in found for option in options[row]]
    for some in batched(asked, OPTIONS_TOGETHER):
        rows = [row for row, _ in some]
        begun = torch.tensor(rows, device=behind_BV.device), torch.tensor([ids[0] for _, ids in some])
        first_B = behind_BV[begun[0], begun[1].to(behind_BV.device)]
        rest_B = torch.zeros_like(first_B)
        longer = [place for place, (_, ids) in enumerate(some) if len(ids) > 1]
        if longer:
            branch = reading.copy()
            branch.select([rows[place] for place in longer])
            logits_BSV = branch.read([some[place][1][:-1] for place in longer], every=True)
            logprob_BSV = without_never(logits_BSV, tokenizer).log_softmax(-1)
            for b, place in enumerate(longer):
                wanted_S = torch.tensor(some[place][1][1:], device=logprob_BSV.device)
                steps_S = torch.arange(len(wanted_S), device=logprob_BSV.device)
                rest_B[place] = logprob_BSV[b, steps_S, wanted_S].sum()
        for row, value in zip(rows, (first_B + rest_B).tolist(), strict=True):
            found[row].append(value)
    return [found.get(row) for row in range(len(prompts))]


def _fit(reading: Reading, prompt: Sequence[int], options: Sequence[Sequence[int]]) -> bool:
    room = reading.room(prompt)
    return room is None or all(len(option) < room for option in options)  # and the end behind it
