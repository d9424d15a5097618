"""What each text position sees of the row's audio while answers are decoded, as a mask; in training nothing needs one
(``stretches.py``).

    if not sees_everything(rows, audio.audio_of_BL):
        mask_B1SL = audio_mask(first_audio_BS, last_audio_BS, audio_of_BL, dtype)

visible(position t, key k) = audio k is not padding and first_audio[t] <= audio_of[k] <= last_audio[t]. Which
audios a position may see is decided where rows are made; here it is only compared. Masks are added to the
scores: 0 where visible, -inf elsewhere.

A position that sees no audio must get exactly 0 from cross-attention. So every mask has at least one key more than
there are audio tokens, a null key whose value is zero; only such positions see it.

Whether a mask is needed at all depends on values. Rows and ``audio_of_BL`` on the host answer that without
waiting for the GPU; on the GPU each question would be a synchronisation.

Shapes: S text positions, B rows, L audio tokens.
"""

import torch
from torch import Tensor

from megatron_af.data.batch import TextRows

KEY_MULTIPLE = 8
"""Masked kernels want the key axis aligned; null keys fill it up."""


def sees_everything(rows: TextRows, audio_of_BL: Tensor) -> bool:
    """Whether every position that is not padding sees every key, and no key is padding."""
    if bool((audio_of_BL < 0).any()):
        return False
    last_audio_B1 = audio_of_BL.amax(1, keepdim=True).to(rows.last_audio_BS.device)
    sees_all_BS = (rows.first_audio_BS <= 0) & (rows.last_audio_BS >= last_audio_B1)
    return bool((sees_all_BS | (rows.segment_BS < 0)).all())


def audio_mask(first_BS: Tensor, last_BS: Tensor, audio_of_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, S, L'] with L' > L a multiple of :data:`KEY_MULTIPLE`; key L is the null key."""
    audio_of_B1L = audio_of_BL[:, None, :]
    visible_BSL = (audio_of_B1L >= first_BS.clamp(min=0)[:, :, None]) & (audio_of_B1L <= last_BS[:, :, None])
    batch, length, keys = visible_BSL.shape
    null_BS1 = ~visible_BSL.any(dim=-1, keepdim=True)
    unused_BSK = null_BS1.new_zeros(1, 1, 1).expand(batch, length, KEY_MULTIPLE - keys % KEY_MULTIPLE - 1)
    visible_BSL = torch.cat([visible_BSL, null_BS1, unused_BSK], dim=-1)
    mask_BSL = torch.zeros(visible_BSL.shape, dtype=dtype, device=visible_BSL.device)
    return mask_BSL.masked_fill_(~visible_BSL, float("-inf")).unsqueeze(1)
