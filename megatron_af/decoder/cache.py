"""What decoding keeps between two tokens: keys and values of the text so far, and of the audio, layer by layer.

    cache = DecoderCache(room=longest_prompt + max_new_tokens)
    logits_BV = lm.logits(prompts, keys, added_rows_NH, position_B=last_B, cache=cache)      # fills it
    logits_BV = lm.step(newest, keys, added_rows_NH, place_B, cache)                       # one token more a row

It comes with the call, in the place of the masks and of the audio tokens; no layer keeps state. megatron-core's own
inference context is not used: it knows neither cross-attention to audio nor rows of unequal length that leave a batch.

Shapes: S text positions of a call, L keys, B rows, N heads, D head dim.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class DecoderCache:
    """
    Args:
        room: text positions that a row may come to have.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.place_B: Tensor | None = None
        """Position of each row's newest token; None while the prompts are read."""
        self._longest = 0
        self._text: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._audio: dict[nn.Module, Tensor] = {}

    def extend(self, layer: nn.Module, key_SBND: Tensor, value_SBND: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of the text so far [L, B, N, D], these ones included."""
        if self.place_B is None:
            self._text[layer] = with_zero_keys(key_SBND, self.room), with_zero_keys(value_SBND, self.room)
            return key_SBND, value_SBND
        key_LBND, value_LBND = self._text[layer]
        rows = torch.arange(key_LBND.shape[1], device=key_LBND.device)
        key_LBND[self.place_B, rows] = key_SBND[0]
        value_LBND[self.place_B, rows] = value_SBND[0]
        return key_LBND[: self._longest], value_LBND[: self._longest]

    def begin_step(self, place_B: Tensor, device: torch.device, dtype: torch.dtype) -> "CachedText":
        """One more token of each row, at these positions (on the host: nothing waits for the device). It sees the
        row's text up to itself."""
        self._longest = int(place_B.max()) + 1
        beyond_BL = torch.arange(self._longest) > place_B[:, None]
        self.place_B = place_B.to(device)
        if not bool(beyond_BL.any()):
            return CachedText(self, None)
        mask_BL = torch.zeros(beyond_BL.shape, dtype=dtype).masked_fill_(beyond_BL, float("-inf"))
        return CachedText(self, mask_BL.to(device)[:, None, None])

    def audio(self, layer: nn.Module, room: int, project: Callable[[], Tensor]) -> Tensor:
        """Keys and values of the audio, [L, B, ...], of at least ``room`` keys: projected, and filled up with zero
        keys, when they are asked for first."""
        kept = self._audio.get(layer)
        if kept is None or len(kept) < room:
            kept = self._audio[layer] = with_zero_keys(project() if kept is None else kept, room)
        return kept

    def forget_audio(self) -> None:
        """It is projected again for the next token."""
        self._audio.clear()

    def keep(self, row_B: Tensor) -> None:
        """Only these rows go on."""
        self._text = {layer: (k[:, row_B], v[:, row_B]) for layer, (k, v) in self._text.items()}
        self._audio = {layer: x.index_select(1, row_B) for layer, x in self._audio.items()}


def with_zero_keys(x_LB: Tensor, length: int) -> Tensor:
    """Filled up with zeros to ``length`` along the first dimension."""
    more = length - len(x_LB)
    return torch.cat([x_LB, x_LB.new_zeros(more, *x_LB.shape[1:])]) if more > 0 else x_LB


@dataclass(frozen=True)
class CachedText:
    """Stands for the mask of self-attention."""

    cache: DecoderCache
    mask_B1SL: Tensor | None


@dataclass(frozen=True)
class CachedAudio:
    """Stands for the audio tokens."""

    cache: DecoderCache
    tokens_LBD: Tensor
