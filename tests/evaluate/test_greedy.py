"""Batched greedy decoding gives every prompt the answer that it gets alone."""

from typing import Any

import tokenizers
import torch
from tokenizers.models import WordLevel

from megatron_af.config import ParallelConfig
from megatron_af.data.batch import StepBatch
from megatron_af.data.collate import PackedRow, Segment, collate
from megatron_af.evaluate.greedy import greedy_answers
from megatron_af.model import build
from megatron_af.parallel import groups
from megatron_af.parallel.device import current_device
from megatron_af.text.tokenizer import Tokenizer
from tests import tiny
from tests.distributed import run_distributed

NEW = 5


def tokenizer() -> Tokenizer:
    words = {f"w{i}": i for i in range(89)} | {"<|endoftext|>": 89}
    return Tokenizer(tokenizers.Tokenizer(WordLevel(words, unk_token="w0")))


def prompts(tokens: Tokenizer, chosen: list[int]) -> StepBatch:
    """Prompts of unequal length; the third hears two clips, the last none."""
    clips = [(0,), (1,), (0, 2), ()]
    rows = []
    for number in chosen:
        ids = [tokens.audio_id] * len(clips[number]) + list(range(3 + number, 6 + 3 * number)) + [tokens.separator_id]
        rows.append(PackedRow(segments=(Segment(ids=ids, num_audios=len(clips[number])),), clips=clips[number]))
    text = collate(rows, tokens, 16)
    windows = tiny.CLIP_WINDOWS[:3]
    return StepBatch(
        rows=(text,),
        clip_windows=windows,
        owners=(tuple(range(3)),),
        mel_WFM=torch.cat([tiny.mel_of(clip) for clip in range(3)]),
        sample_ids=tuple(map(str, chosen)),
        audio_seconds=0.0,
        num_text_tokens=0,
    )


def decode(rank: int, world_size: int) -> Any:
    groups.initialize(ParallelConfig(), 0)
    model = build(tiny.config(), tiny.VOCABULARY, current_device())
    tiny.fill(model)
    tokens = tokenizer()
    together = greedy_answers(model, prompts(tokens, [0, 1, 2, 3]), tokens, max_new_tokens=NEW)
    alone = [greedy_answers(model, prompts(tokens, [i]), tokens, max_new_tokens=NEW)[0] for i in range(4)]
    short = greedy_answers(model, prompts(tokens, [0, 1, 2, 3]), tokens, max_new_tokens=2)
    return together, alone, short


def test_batched_answers_are_those_of_single_prompts() -> None:
    ((together, alone, short),) = run_distributed(decode, 1)
    assert together == alone
    assert len(set(together)) > 1
    for longer, cut in zip(together, short, strict=True):
        assert longer.split()[:2] == cut.split() and len(longer.split()) <= NEW
