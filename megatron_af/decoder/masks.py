"""What each text position sees: of the text before it, and of the row's audio.

    masks = Masks.of(rows, audio, dtype, device)       # once per micro-batch, shared by all layers

visible(position t, key k) = audio k is not padding and first_audio[t] <= audio_of[k] <= last_audio[t]. Which
audios a position may see is decided where rows are made; here it is only compared. Masks are added to the
scores: 0 where visible, -inf elsewhere. None lets attention use a kernel without a mask.

A position that sees no audio must get exactly 0 from cross-attention. So every cross-attention mask has at
least one key more than there are audio tokens, a null key whose value is zero; only such positions see it.

Whether a mask is needed at all depends on values. Rows and ``audio_of_BL`` on the host answer that without
waiting for the GPU; on the GPU each question would be a synchronisation.

Shapes: S text positions, B rows, L audio tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_af.data.batch import AudioKeys, TextRows
from megatron_af.parallel.transfer import there

KEY_MULTIPLE = 8
"""Masked kernels want the key axis aligned; null keys fill it up."""


@dataclass(frozen=True)
class Masks:
    attention_B1SS: Tensor | None
    """Of self-attention; None: plain causality."""
    audio_B1SL: Tensor | None
    """Of cross-attention, with null keys behind the audio tokens; None: everything is visible."""

    @classmethod
    def of(cls, rows: TextRows, audio: AudioKeys, dtype: torch.dtype, device: torch.device) -> "Masks":
        """Masks of one micro-batch, on ``device``, in the type attention computes in."""
        attention = None if one_segment_each(rows) else segment_mask(there(rows.segment_BS, device), dtype)
        if sees_everything(rows, audio):
            return cls(attention, None)
        first_BS, last_BS = there(rows.first_audio_BS, device), there(rows.last_audio_BS, device)
        return cls(attention, audio_mask(first_BS, last_BS, there(audio.audio_of_BL, device), dtype))


def one_segment_each(rows: TextRows) -> bool:
    """Whether causality alone is the right mask: no row holds a second segment (padding stands last)."""
    return bool((rows.segment_BS.amax(1) <= rows.segment_BS[:, 0]).all())


def sees_everything(rows: TextRows, audio: AudioKeys) -> bool:
    """Whether every position that is not padding sees every key, and no key is padding."""
    if bool((audio.audio_of_BL < 0).any()):
        return False
    last_audio_B1 = audio.audio_of_BL.amax(1, keepdim=True).to(rows.last_audio_BS.device)
    sees_all_BS = (rows.first_audio_BS <= 0) & (rows.last_audio_BS >= last_audio_B1)
    return bool((sees_all_BS | (rows.segment_BS < 0)).all())


def segment_mask(segment_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """Causal inside each segment, nothing across. Padding (-1) is a segment of its own, so no row is empty."""
    length = segment_BS.shape[1]
    causal_SS = torch.ones(length, length, dtype=torch.bool, device=segment_BS.device).tril()
    same_BSS = segment_BS[:, :, None] == segment_BS[:, None, :]
    return _additive(same_BSS & causal_SS, dtype)


def audio_mask(first_BS: Tensor, last_BS: Tensor, audio_of_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, S, L'] with L' > L a multiple of :data:`KEY_MULTIPLE`; key L is the null key."""
    audio_of_B1L = audio_of_BL[:, None, :]
    visible_BSL = (audio_of_B1L >= first_BS.clamp(min=0)[:, :, None]) & (audio_of_B1L <= last_BS[:, :, None])
    batch, length, keys = visible_BSL.shape
    null_BS1 = ~visible_BSL.any(dim=-1, keepdim=True)
    unused_BSK = null_BS1.new_zeros(1, 1, 1).expand(batch, length, KEY_MULTIPLE - keys % KEY_MULTIPLE - 1)
    return _additive(torch.cat([visible_BSL, null_BS1, unused_BSK], dim=-1), dtype)


def _additive(visible_BSL: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(visible_BSL.shape, dtype=dtype, device=visible_BSL.device)
    return mask.masked_fill_(~visible_BSL, float("-inf")).unsqueeze(1)
