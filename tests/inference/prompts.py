"""Four prompts of unequal length for a tiny model."""

import tokenizers
import torch
from tokenizers.models import WordLevel

from megatron_af.data.batch import StepAudio, StepBatch, TextBatch
from megatron_af.data.collate import PackedRow, Segment, collate
from megatron_af.text.tokenizer import Tokenizer
from tests import tiny


def tokenizer() -> Tokenizer:
    words = {f"w{i}": i for i in range(89)} | {"<|endoftext|>": 89}
    return Tokenizer(tokenizers.Tokenizer(WordLevel(words, unk_token="w0")))


def prompts(tokens: Tokenizer, chosen: list[int], more: int = 0) -> StepBatch[TextBatch]:
    """The third hears two clips, the last none; behind each stand ``more`` words of an answer."""
    clips = [(0,), (1,), (0, 2), ()]
    rows = []
    for number in chosen:
        ids = [tokens.audio_id] * len(clips[number]) + list(range(3 + number, 6 + 3 * number)) + [tokens.separator_id]
        ids += [(7 * number + 11 * word) % 80 for word in range(more)]
        rows.append(PackedRow(segments=(Segment(ids=ids, num_audios=len(clips[number])),), clips=clips[number]))
    text = collate(rows, tokens, 16 + more)
    windows = tiny.CLIP_WINDOWS[:3]
    return StepBatch(
        audio=StepAudio(
            clip_windows=windows,
            owners=(tuple(range(3)),),
            mel_WFM=torch.cat([tiny.mel_of(clip) for clip in range(3)]),
            seconds=0.0,
        ),
        text=TextBatch(rows=(text,), num_tokens=0),
        sample_ids=tuple(map(str, chosen)),
    )
