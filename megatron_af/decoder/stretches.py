"""Which text positions see which keys, as stretches of both: attention by stretch needs no mask.

    sight = Sight.of(rows, audio.audio_of_BL)       # once a micro-batch, on the host, shared by all layers

A segment of a packed row sees itself; neighbouring positions that hear the same audios see the same keys, which lie
side by side. So both attentions are blocks along a diagonal (``attention_by_stretch``): work and memory grow with the
blocks, not with their frame.

Positions and keys are counted row after row. Shapes: S text positions, B rows, L audio tokens, T positions or K keys of
all rows, E stretches.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from numpy.typing import NDArray
from torch import Tensor

from megatron_af.data.batch import TextRows
from megatron_af.decoder.masks import sees_everything


@dataclass(frozen=True)
class Stretches:
    """Side by side, every text position once: how many positions see how many keys, and which."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    """Positions without keys get 0; keys without positions are nobody's."""
    bounds_2E: Tensor
    """int32 on the host: where stretches of positions and of keys begin, and the last ones end."""
    index_K: Tensor | None
    """The keys in the order of the stretches, where that is not their own: some are seen by several stretches."""

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]], index_K: Tensor | None = None) -> Self:
        queries, keys = zip(*((count, seen) for count, seen in pairs if count or seen), strict=True)
        bounds_2E = torch.zeros(2, len(queries) + 1, dtype=torch.int32, device="cpu")
        bounds_2E[:, 1:] = torch.tensor([queries, keys], device="cpu").cumsum(1)
        return cls(queries, keys, bounds_2E, index_K)

    @classmethod
    def of_text(cls, segment_BS: Tensor) -> Self:
        """Of self-attention: each segment sees itself, padding sees nothing and is seen by none."""
        batch, length = segment_BS.shape
        row_T = np.arange(batch).repeat(length)
        segment_T = segment_BS.flatten().numpy()
        pairs: list[tuple[int, int]] = []
        for begin, end in _runs(np.stack([row_T, segment_T], axis=1)):
            count = end - begin
            pairs += [(count, count)] if segment_T[begin] >= 0 else [(count, 0), (0, count)]
        return cls.of(pairs)

    @classmethod
    def of_audio(cls, rows: TextRows, audio_of_BL: Tensor) -> Self:
        """Of cross-attention: positions that hear the same audios see their tokens.

        Args:
            audio_of_BL: of `AudioKeys`, on the host; a row's audios lie in order, and padding behind them.
        """
        keys_T2 = _keys_of(rows, audio_of_BL)
        runs = [(end - begin, *keys_T2[begin].tolist()) for begin, end in _runs(keys_T2)]
        ordered = [(begin, end) for _, begin, end in runs if begin < end]
        if any(begin < before for (_, before), (begin, _) in pairwise(ordered)):
            index_K = torch.cat([torch.arange(begin, end, device="cpu") for begin, end in ordered])
            return cls.of(((count, end - begin) for count, begin, end in runs), index_K)
        pairs, seen = [], 0
        for count, begin, end in runs:
            if begin < end:
                pairs.append((0, begin - seen))
                seen = end
            pairs.append((count, end - begin))
        return cls.of([*pairs, (0, audio_of_BL.numel() - seen)])

    @property
    def scores(self) -> int:
        """Pairs of a position and a key, causality aside."""
        return sum(count * seen for count, seen in zip(self.queries, self.keys, strict=True))

    @property
    def tensors(self) -> list[Tensor]:
        """What attention wants on its device."""
        return [self.bounds_2E, *([] if self.index_K is None else [self.index_K])]


def _keys_of(rows: TextRows, audio_of_BL: Tensor) -> NDArray[np.int64]:
    """Where the keys of each position begin and end, [T, 2]; 0 and 0 where it has none."""
    keys_of_rows = []
    for row, (first_S, last_S) in enumerate(zip(rows.first_audio_BS, rows.last_audio_BS, strict=True)):
        audio_of_K = audio_of_BL[row][audio_of_BL[row] >= 0].numpy()
        begin_S = np.searchsorted(audio_of_K, first_S.clamp(min=0).numpy(), "left")
        end_S = np.searchsorted(audio_of_K, last_S.numpy(), "right")
        keys_S2 = np.stack([begin_S, end_S], axis=1) + row * audio_of_BL.shape[1]
        keys_S2[begin_S >= end_S] = 0
        keys_of_rows.append(keys_S2)
    return np.concatenate(keys_of_rows)


def _runs(of_T: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Where neighbouring positions with equal entries begin and end."""
    starts = np.flatnonzero(np.any(of_T[1:] != of_T[:-1], axis=1)) + 1
    bounds = [0, *starts.tolist(), len(of_T)]
    return pairwise(bounds)


class Sight(PackedSeqParams):
    """What the positions of a micro-batch see; it reaches the layers where megatron-core passes packed sequences.

    Rows keep megatron-core's format [S, B, ...], and rotary positions count along a row: only their differences matter.
    """

    def __init__(self, text: Stretches | None, audio: Stretches | None, length: int) -> None:
        """
        Args:
            text: None: rows of one segment, plain causality.
            audio: None: every position sees every key of its row.
            length: S.
        """
        super().__init__(qkv_format="sbhd", max_seqlen_q=length, max_seqlen_kv=length)
        self.text, self.audio = text, audio

    @classmethod
    def of(cls, rows: TextRows, audio_of_BL: Tensor) -> Self:
        """
        Args:
            audio_of_BL: of `AudioKeys`; rows and this lie on the host, for what is asked of them are their values.
        """
        text = None if one_segment_each(rows) else Stretches.of_text(rows.segment_BS)
        audio = None if sees_everything(rows, audio_of_BL) else Stretches.of_audio(rows, audio_of_BL)
        return cls(text, audio, rows.ids_BS.shape[1])

    @property
    def tensors(self) -> list[Tensor]:
        return [tensor for stretches in (self.text, self.audio) if stretches for tensor in stretches.tensors]


def one_segment_each(rows: TextRows) -> bool:
    """Whether causality alone is the right mask: no row holds a second segment (padding stands last)."""
    return bool((rows.segment_BS.amax(1) <= rows.segment_BS[:, 0]).all())
