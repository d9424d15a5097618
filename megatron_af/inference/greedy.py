"""Greedy answers for a batch of prompts, with the keys and values of text and audio kept between two tokens.

    answers = greedy_answers(model, batch, tokenizer, max_new_tokens=4)

``batch`` holds one text row per question, which ends where the answer begins (``render(..., prompt=True)``). A row that
has answered leaves the batch, so that one long answer does not make all others wait. Special tokens, and rows of the
table that have no token, are no part of an answer and never written.

Shapes: S text positions, B rows, L audio tokens of a row, T packed audio tokens, D audio width, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_af.audio.encode_ahead import key_layout
from megatron_af.data.batch import AudioKeys, StepAudio, StepBatch, TextBatch, TextRows
from megatron_af.decoder.cache import DecoderCache
from megatron_af.model import AudioFlamingo, AudioFront
from megatron_af.text.tokenizer import Tokenizer

LENGTH_MULTIPLE = 8
"""Rows are cut to a multiple of it: aligned for the kernels, and of few shapes."""
PADDING = {
    "labels_BS": -100,
    "segment_BS": -1,
    "dataset_BS": 0,
    "first_audio_BS": 0,
    "last_audio_BS": -1,
}


@torch.no_grad()
def greedy_answers(
    model: AudioFlamingo, batch: StepBatch[TextBatch], tokenizer: Tokenizer, *, max_new_tokens: int
) -> list[str]:
    """The answer to every prompt of ``batch``, in order. The model must lie whole on this rank."""
    front = model.front
    assert isinstance(front, AudioFront)
    front.eval()
    (decoder,) = model.chunks
    decoder.eval()
    (prompts,) = batch.text.rows
    keys = audio_keys(front, batch.audio, prompts)
    length_B = (prompts.segment_BS >= 0).sum(1)
    longest = -(-int(length_B.max()) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    rows, cache = _of_length(prompts, longest, tokenizer.pad_id), DecoderCache(longest + max_new_tokens)
    logits_BV = decoder.logits(rows, keys, front.added_rows, position_B=length_B - 1, cache=cache)
    newest = _each(rows, lambda name, x_BS: x_BS.gather(1, length_B[:, None].to(x_BS.device) - 1))
    written: list[list[int]] = [[] for _ in prompts.clips]
    going_B = torch.arange(len(written))
    never = torch.tensor(tokenizer.never_written(logits_BV.shape[-1]), device=logits_BV.device)
    for new in range(1, max_new_tokens + 1):
        token_B = logits_BV.index_fill(-1, never, -torch.inf).argmax(-1).cpu()
        more_B = (token_B != tokenizer.end_of_chunk_id) & (token_B != tokenizer.eos_id)
        if not bool(more_B.any()):
            break
        if not bool(more_B.all()):
            newest, keys = _select(newest, keys, more_B)
            cache.keep(more_B.nonzero().squeeze(1).to(keys.tokens_LBD.device))
            token_B, length_B, going_B = token_B[more_B], length_B[more_B], going_B[more_B]
        for row, token in zip(going_B.tolist(), token_B.tolist(), strict=True):
            written[row].append(token)
        if new == max_new_tokens:
            break
        newest = dataclasses.replace(newest, ids_BS=token_B[:, None].to(newest.ids_BS.device))
        logits_BV = decoder.step(newest, keys, front.added_rows, length_B, cache)
        length_B = length_B + 1
    return [tokenizer.decode(ids).strip() for ids in written]


def audio_keys(front: AudioFront, audio: StepAudio, rows: TextRows) -> AudioKeys:
    """Audio tokens of every row's clips, where one rank owns all clips of the batch."""
    per_window, windows = front.tokens_per_window, list(audio.clip_windows)
    starts = (torch.tensor([0, *windows]).cumsum(0) * per_window).tolist()
    if front.sees == "row":
        features_WLD = front.added_rows.new_zeros(0, per_window, front.feature_dim)
        if audio.mel_WFM is not None:
            features_WLD = front.encode(audio.mel_WFM)
        return front.row_keys(features_WLD, windows, rows.clips)
    index_BL, audio_of_BL = key_layout(rows.clips, audio.clip_windows, dict(enumerate(starts)), per_window)
    if audio.mel_WFM is None:
        tokens_TD = front.added_rows.new_zeros(1, front.feature_dim)
    else:
        tokens_TD = front(front.encode(audio.mel_WFM), windows)
    return AudioKeys(tokens_LBD=tokens_TD[index_BL.t().to(tokens_TD.device)], audio_of_BL=audio_of_BL)


def _of_length(rows: TextRows, length: int, pad_id: int) -> TextRows:
    """The same rows, cut or filled up with padding."""

    def fitted(name: str, x_BS: Tensor) -> Tensor:
        return F.pad(x_BS[:, :length], (0, max(0, length - x_BS.shape[1])), value=PADDING.get(name, pad_id))

    return _each(rows, fitted)


def _select(rows: TextRows, keys: AudioKeys, kept_B: Tensor) -> tuple[TextRows, AudioKeys]:
    chosen = kept_B.nonzero().squeeze(1)
    clips = tuple(rows.clips[row] for row in chosen.tolist())
    rows = dataclasses.replace(_each(rows, lambda name, x_BS: x_BS[chosen]), clips=clips)
    on_device = chosen.to(keys.tokens_LBD.device)
    tokens_LBD = keys.tokens_LBD.index_select(1, on_device)
    return rows, AudioKeys(tokens_LBD=tokens_LBD, audio_of_BL=keys.audio_of_BL[chosen.to(keys.audio_of_BL.device)])


def _each(rows: TextRows, change: Callable[[str, Tensor], Tensor]) -> TextRows:
    """The rows with every tensor changed."""
    changed: dict[str, Any] = {name: change(name, getattr(rows, name)) for name in ("ids_BS", *PADDING)}
    return dataclasses.replace(rows, **changed)
