"""Batched greedy decoding gives every prompt the answer that it gets alone."""

from typing import Any

import pytest
import torch

from megatron_af.config import ParallelConfig
from megatron_af.data.batch import AudioKeys, StepBatch, TextRows
from megatron_af.decoder import lm
from megatron_af.inference.greedy import audio_keys, greedy_answers
from megatron_af.model import AudioFlamingo, AudioFront, build
from megatron_af.parallel import groups
from megatron_af.parallel.device import current_device
from megatron_af.text.tokenizer import Tokenizer
from tests import tiny
from tests.distributed import run_distributed
from tests.inference.prompts import prompts, tokenizer

pytestmark = pytest.mark.slow

NEW = 5


def slow_answers(model: AudioFlamingo, batch: StepBatch, tokens: Tokenizer, new: int) -> list[str]:
    """Each prompt alone in its batch's audio, every position's logits, one token more each time."""
    front, (decoder,), (rows,) = model.front, model.chunks, batch.text.rows
    assert isinstance(front, AudioFront)
    model.front.eval(), decoder.eval()
    keys = audio_keys(front, batch.audio, rows)
    answers = []
    for b in range(len(rows.clips)):
        row = {name: x[b : b + 1] for name, x in vars(rows).items()}
        used = int((row["segment_BS"] >= 0).sum())
        row |= {name: x[:, :used] for name, x in row.items() if name != "clips"}
        key = AudioKeys(tokens_LBD=keys.tokens_LBD[:, b : b + 1], audio_of_BL=keys.audio_of_BL[b : b + 1])
        written: list[int] = []
        while len(written) < new:
            logits_V = decoder.logits(TextRows(**row), key, front.added_rows)[0, -1]
            logits_V[[tokens.audio_id, tokens.separator_id, tokens.pad_id]] = -torch.inf
            token = int(logits_V.argmax())
            if token in (tokens.end_of_chunk_id, tokens.eos_id):
                break
            written.append(token)
            row |= {name: torch.cat([x, x[:, -1:]], 1) for name, x in row.items() if name != "clips"}
            row["ids_BS"][0, -1] = token
        answers.append(tokens.decode(written).strip())
    return answers


def decode(rank: int, world_size: int, stop: int) -> Any:
    groups.initialize(ParallelConfig(), 0)
    model = build(tiny.config(), tiny.VOCABULARY, current_device())
    tiny.fill(model)
    tokens = tokenizer()
    tokens.eos_id = stop  # a word that ends an answer, so that rows end at different times
    widths: list[int] = []
    head = lm.token_logits
    lm.token_logits = lambda table, hidden_TH, *rest: widths.append(len(hidden_TH)) or head(table, hidden_TH, *rest)
    together = greedy_answers(model, prompts(tokens, [0, 1, 2, 3]), tokens, max_new_tokens=NEW)
    lm.token_logits = head
    with torch.no_grad():
        slow = slow_answers(model, prompts(tokens, [0, 1, 2, 3]), tokens, NEW)
    alone = [greedy_answers(model, prompts(tokens, [i]), tokens, max_new_tokens=NEW)[0] for i in range(4)]
    short = greedy_answers(model, prompts(tokens, [0, 1, 2, 3]), tokens, max_new_tokens=2)
    return together, alone, slow, short, widths


@pytest.mark.parametrize(("stop", "lengths"), [(-1, [5, 5, 5, 5]), (25, [5, 5, 5, 2]), (64, [0, 0, 0, 5])])
def test_batched_answers_are_those_of_single_prompts_decoded_the_slow_way(stop: int, lengths: list[int]) -> None:
    ((together, alone, slow, short, widths),) = run_distributed(decode, 1, stop)
    assert together == alone == slow
    assert len(set(together)) > 1
    assert [len(answer.split()) for answer in together] == lengths
    for longer, cut in zip(together, short, strict=True):
        assert longer.split()[:2] == cut.split()
    # The output layer ran for one position of each row that had not answered yet.
    assert widths == [sum(length >= step for length in lengths) for step in range(NEW)]


def special(rank: int, world_size: int) -> Any:
    """Answers of a model that always wants to write one of the special tokens, and its ends."""
    groups.initialize(ParallelConfig(), 0)
    model = build(tiny.config(), tiny.VOCABULARY, current_device())
    tiny.fill(model)
    tokens, head, said = tokenizer(), lm.token_logits, []
    for wanted in (tokens.audio_id, tokens.separator_id, tokens.pad_id, tokens.end_of_chunk_id, tokens.eos_id):

        def loud(table: Any, hidden_TH: Any, *rest: Any, wanted: int = wanted) -> Any:
            logits_TV = head(table, hidden_TH, *rest).clone()
            logits_TV[:, wanted] += 1e6
            return logits_TV

        lm.token_logits = loud
        said.append(greedy_answers(model, prompts(tokens, [0]), tokens, max_new_tokens=2)[0])
    lm.token_logits = head
    return said


def test_marks_separators_and_padding_are_never_written() -> None:
    ((audio, separator, pad, chunk, end),) = run_distributed(special, 1)
    assert audio == separator == pad and len(audio.split()) == 2, "the best of what an answer may hold"
    assert (chunk, end) == ("", "")
