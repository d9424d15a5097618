"""What sees what, token by token."""

import torch
from torch import Tensor

from megatron_af.data.batch import TextRows


def text_visible(segment_BS: Tensor) -> Tensor:
    """[B * S, B * S], by definition: each segment sees itself up to a position, padding sees nothing."""
    batch, length = segment_BS.shape
    row_T, place_T, segment_T = (
        x.flatten() for x in (*torch.meshgrid(torch.arange(batch), torch.arange(length), indexing="ij"), segment_BS)
    )
    same = (row_T[:, None] == row_T) & (segment_T[:, None] == segment_T) & (segment_T[:, None] >= 0)
    return same & (place_T <= place_T[:, None])


def audio_visible(rows: TextRows, audio_of_BL: Tensor) -> Tensor:
    """[B * S, B * L], by definition."""
    batch, length = rows.ids_BS.shape
    visible = torch.zeros(batch, length, batch, audio_of_BL.shape[1], dtype=torch.bool)
    for b in range(batch):
        for s in range(length):
            first, last = int(rows.first_audio_BS[b, s]), int(rows.last_audio_BS[b, s])
            visible[b, s, b] = (audio_of_BL[b] >= max(first, 0)) & (audio_of_BL[b] <= last)
    return visible.flatten(0, 1).flatten(1)
