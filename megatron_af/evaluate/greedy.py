"""Greedy answers for a batch of prompts, by running the whole text again for every token.

    answers = greedy_answers(model, batch, tokenizer, max_new_tokens=4)

``batch`` comes from ``evaluation_batches(..., prompts=True)``: one text row per question, ending where the answer
begins. For answers of a few words; longer ones want a cache of keys and values.

Shapes: S text positions, B rows, L audio tokens of a row, T packed audio tokens, D audio width, V vocabulary.
"""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F

from megatron_af.data.batch import AudioKeys, StepBatch, TextRows
from megatron_af.model import AudioFlamingo, AudioFront
from megatron_af.parallel.encode_ahead import key_layout
from megatron_af.text.tokenizer import Tokenizer


@torch.no_grad()
def greedy_answers(model: AudioFlamingo, batch: StepBatch, tokenizer: Tokenizer, *, max_new_tokens: int) -> list[str]:
    """The answer to every prompt of ``batch``, in order. The model must lie whole on this rank."""
    front = model.front
    assert isinstance(front, AudioFront)
    front.eval()
    (decoder,) = model.chunks
    decoder.eval()
    (rows,) = batch.rows
    keys = audio_keys(front, batch, rows)
    length_B = (rows.segment_BS >= 0).sum(1)
    row_B = torch.arange(len(length_B))
    rows = _longer(rows, max_new_tokens, tokenizer.pad_id)
    done_B = torch.zeros(len(length_B), dtype=torch.bool)
    written: list[list[int]] = [[] for _ in row_B]
    for _ in range(max_new_tokens):
        logits_BV = decoder.logits(rows, keys, front.added_rows)[row_B, length_B - 1]
        token_B = logits_BV.argmax(-1).cpu()
        done_B |= (token_B == tokenizer.end_of_chunk_id) | (token_B == tokenizer.eos_id)
        if bool(done_B.all()):
            break
        for row, token in enumerate(token_B.tolist()):
            if not done_B[row]:
                written[row].append(token)
        rows.ids_BS[row_B, length_B] = token_B
        for field in (rows.segment_BS, rows.first_audio_BS, rows.last_audio_BS):
            field[row_B, length_B] = field[row_B, length_B - 1]
        length_B = length_B + 1
    return [tokenizer.decode(ids).strip() for ids in written]


def audio_keys(front: AudioFront, batch: StepBatch, rows: TextRows) -> AudioKeys:
    """Audio tokens of every row's clips, where one rank owns all clips of the batch."""
    per_window, windows = front.tokens_per_window, list(batch.clip_windows)
    starts = (torch.tensor([0, *windows]).cumsum(0) * per_window).tolist()
    index_BL, audio_of_BL = key_layout(rows.clips, batch.clip_windows, dict(enumerate(starts)), per_window)
    if batch.mel_WFM is None:
        tokens_TD = front.added_rows.new_zeros(1, front.encoder.dim)
    else:
        tokens_TD = front(front.encode(batch.mel_WFM), windows)
    return AudioKeys(tokens_LBD=tokens_TD[index_BL.t().to(tokens_TD.device)], audio_of_BL=audio_of_BL)


def _longer(rows: TextRows, new: int, pad_id: int) -> TextRows:
    """The same rows with room for ``new`` more positions, rounded up to a multiple of 8."""
    room = -(-(rows.ids_BS.shape[1] + new) // 8) * 8 - rows.ids_BS.shape[1]
    fill = {
        "ids_BS": pad_id,
        "labels_BS": -100,
        "segment_BS": -1,
        "dataset_BS": 0,
        "first_audio_BS": 0,
        "last_audio_BS": -1,
    }
    longer: dict[str, Any] = {name: F.pad(getattr(rows, name), (0, room), value=value) for name, value in fill.items()}
    return dataclasses.replace(rows, **longer)
