"""Four prompts of unequal length for a tiny model, and answers to them the slow way."""

from collections.abc import Sequence
from typing import Any

import tokenizers
import torch
from tokenizers.models import WordLevel
from torch import Tensor

from megatron_af.config import ParallelConfig
from megatron_af.data.batch import AudioKeys, StepAudio, StepBatch, TextBatch, TextRows
from megatron_af.data.collate import PackedRow, Segment, collate
from megatron_af.inference.answers import write
from megatron_af.inference.decoding import Decoding
from megatron_af.inference.reading import Reading, audio_keys, heard_audio
from megatron_af.inference.writing import Answer
from megatron_af.model import AudioFlamingo, AudioFront, build
from megatron_af.parallel import groups
from megatron_af.parallel.device import current_device
from megatron_af.text.tokenizer import Tokenizer
from tests import tiny

CLIPS: tuple[tuple[int, ...], ...] = ((0,), (1,), (0, 2), ())
"""The third hears two clips, the last none."""


def tokenizer() -> Tokenizer:
    words = {f"w{i}": i for i in range(89)} | {"<|endoftext|>": 89}
    return Tokenizer(tokenizers.Tokenizer(WordLevel(words, unk_token="w0")))


def prompt_ids(tokens: Tokenizer, number: int) -> list[int]:
    marks = [tokens.audio_id] * len(CLIPS[number])
    return [*marks, *range(3 + number, 6 + 3 * number), tokens.separator_id]


def prompts(tokens: Tokenizer, chosen: Sequence[int], more: int = 0) -> StepBatch[TextBatch]:
    """Behind each stand ``more`` words of an answer."""
    rows = []
    for number in chosen:
        ids = prompt_ids(tokens, number) + [(7 * number + 11 * word) % 80 for word in range(more)]
        rows.append(PackedRow(segments=(Segment(ids=ids, num_audios=len(CLIPS[number])),), clips=CLIPS[number]))
    text = collate(rows, tokens, 16 + more)
    return StepBatch(
        audio=audio(), text=TextBatch(rows=(text,), num_tokens=0), sample_ids=tuple(map(str, chosen))
    )


def audio() -> StepAudio:
    return StepAudio(
        clip_windows=tiny.CLIP_WINDOWS[:3],
        owners=(tuple(range(3)),),
        mel_WFM=torch.cat([tiny.mel_of(clip) for clip in range(3)]),
        seconds=0.0,
    )


def tiny_model(parallel: ParallelConfig = ParallelConfig(), **changes: Any) -> AudioFlamingo:  # noqa: B008
    groups.initialize(parallel, 0)
    model = build(tiny.config(**dict(vars(parallel)) | changes), tiny.VOCABULARY,
                  current_device())  # fmt: skip
    tiny.fill(model)
    model.front.eval()
    for chunk in model.chunks:
        chunk.eval()
    return model


def read(model: AudioFlamingo, tokens: Tokenizer, chosen: Sequence[int]) -> Reading:
    front = model.front
    assert isinstance(front, AudioFront)
    return Reading(model, tokens, heard_audio(front, audio(), [CLIPS[number] for number in chosen]))


def written(
    model: AudioFlamingo, tokens: Tokenizer, chosen: Sequence[int], decodings: Decoding | Sequence[Decoding]
) -> list[Answer]:
    if isinstance(decodings, Decoding):
        decodings = [decodings] * len(chosen)
    return write(read(model, tokens, chosen), [prompt_ids(tokens, number) for number in chosen], decodings, tokens)


@torch.no_grad()
def slow_logits(model: AudioFlamingo, tokens: Tokenizer, number: int, answer: Sequence[int]) -> Tensor:
    """Behind the prompt and each token of an answer: the whole text alone, without a cache; [1 + N, V], with what is
    never written at -inf."""
    front, (decoder,) = model.front, model.chunks
    assert isinstance(front, AudioFront)
    ids = [*prompt_ids(tokens, number), *answer]
    row = PackedRow(segments=(Segment(ids=ids, num_audios=len(CLIPS[number])),), clips=CLIPS[number])
    rows: TextRows = collate([row], tokens, len(ids))
    keys: AudioKeys = audio_keys(front, audio(), rows.clips)
    logits_SV = decoder.logits(rows, keys, front.added_rows)[0, len(ids) - len(answer) - 1 :]
    logits_SV[:, [tokens.audio_id, tokens.separator_id, tokens.pad_id]] = -torch.inf
    return logits_SV


def slow_answer(model: AudioFlamingo, tokens: Tokenizer, number: int, new: int) -> list[int]:
    """Greedy."""
    ids: list[int] = []
    while len(ids) < new:
        token = int(slow_logits(model, tokens, number, ids)[-1].argmax())
        if token in (tokens.end_of_chunk_id, tokens.eos_id):
            break
        ids.append(token)
    return ids
