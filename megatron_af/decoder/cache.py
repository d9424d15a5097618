"""What decoding keeps between two calls: keys and values of the text so far, and of the audio, layer by layer.

    cache = DecoderCache(heard)
    logits_BV = lm.extend(prompts, added_rows_NH, cache, position_B=last_B)      # reads the prompts
    logits_BV = lm.extend(newest, added_rows_NH, cache)                          # one token more a row
    cache.select([0, 0, 2])                                                      # rows that go on

It comes with the call, in the place of the masks and of the audio tokens; no layer keeps state. megatron-core's own
inference context is not used: it knows neither cross-attention to audio, nor rows of unequal length that leave a batch
or share what they hear.

Shapes: S text positions of a call, L keys, B rows, U recordings (each with the rows that hear it), G most rows of one
recording, N heads, D head dim, H audio dim.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_af.data.batch import AudioKeys, TextRows
from megatron_af.decoder.masks import audio_mask, sees_everything
from megatron_af.parallel.transfer import there

GROWTH = 128
"""Text positions that a cache grows by: copied rarely, and of few shapes."""


@dataclass(frozen=True)
class HeardAudio:
    """What some rows hear; rows of the same recordings share its tokens, and so their keys and values."""

    tokens_LUH: Tensor
    audio_of_UL: Tensor
    """As in `AudioKeys`, on the host."""
    recording_B: Tensor
    """Which of the U each row hears; on the host."""

    @classmethod
    def of(cls, keys: AudioKeys, recording_B: Sequence[int]) -> "HeardAudio":
        return cls(keys.tokens_LBD, keys.audio_of_BL.cpu(), torch.tensor(recording_B))

    @property
    def audios_B(self) -> Tensor:
        """How many audios each row has."""
        return (self.audio_of_UL.amax(1) + 1)[self.recording_B]


class DecoderCache:
    """
    Args:
        heard: audio of the rows.
    """

    def __init__(self, heard: HeardAudio) -> None:
        self.heard = heard
        self.read_B = torch.zeros(len(heard.recording_B), dtype=torch.int64)
        """Text positions of each row that were read; on the host: nothing waits for the device."""
        self.room = 0
        self._text: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._audio: dict[nn.Module, tuple[Tensor, int]] = {}
        """Keys and values [L, U, N, 2, D], and of how many tokens; laid out by head, as a new token reads them, which
        takes it half the time."""

    def begin(self, rows: TextRows, dtype: torch.dtype, device: torch.device) -> tuple["CachedText", "CachedAudio"]:
        """What stands for the masks of a call that reads more of each row: a row's new positions follow what it read,
        and see that and each other in order."""
        length = rows.ids_BS.shape[1]
        longest = int(self.read_B.max()) + length
        self.room = max(self.room, -(-longest // GROWTH) * GROWTH)
        place_BS = self.read_B[:, None] + torch.arange(length)
        mask_B1SL = None
        beyond_BSL = torch.arange(longest) > place_BS[:, :, None]
        if self.read_B.any() and beyond_BSL.any():
            mask_B1SL = torch.zeros(beyond_BSL.shape, dtype=dtype).masked_fill_(beyond_BSL, float("-inf"))[:, None]
            mask_B1SL = mask_B1SL.to(device)
        text = CachedText(self, place_BS.to(device), longest, mask_B1SL)
        self.read_B = self.read_B + (rows.segment_BS.cpu() >= 0).sum(1)
        audio_of_BL, heard_B1SL = self.heard.audio_of_UL[self.heard.recording_B], None
        if not sees_everything(rows, audio_of_BL):
            first_BS, last_BS = there(rows.first_audio_BS, device), there(rows.last_audio_BS, device)
            heard_B1SL = audio_mask(first_BS, last_BS, audio_of_BL.to(device), dtype)
        return text, CachedAudio.of(self, heard_B1SL)

    def text(self, layer: nn.Module, text: "CachedText", key_SBND: Tensor, value_SBND: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of the text so far [L, B, N, D], these ones included."""
        if layer not in self._text:
            self._text[layer] = with_zero_keys(key_SBND, self.room), with_zero_keys(value_SBND, self.room)
            return key_SBND, value_SBND
        key_LBND, value_LBND = (with_zero_keys(x_LBND, self.room) for x_LBND in self._text[layer])
        rows_B = torch.arange(key_LBND.shape[1], device=key_LBND.device)
        key_LBND[text.place_BS.t(), rows_B] = key_SBND
        value_LBND[text.place_BS.t(), rows_B] = value_SBND
        self._text[layer] = key_LBND, value_LBND
        return key_LBND[: text.longest], value_LBND[: text.longest]

    def audio(self, layer: nn.Module, room: int, project: Callable[[Tensor], Tensor]) -> Tensor:
        """Keys and values of the audio [L, U, N, 2, D]: projected when they are asked for first, and filled up with
        zero keys to ``room``."""
        tokens_LUH = self.heard.tokens_LUH
        kept, known = self._audio.get(layer, (None, 0))
        if kept is None:
            kept = with_zero_keys(project(tokens_LUH), room)
        elif known < len(tokens_LUH):
            kept = with_zero_keys(torch.cat([kept[:known], project(tokens_LUH[known:])]), room)
        elif len(kept) < room:
            kept = with_zero_keys(kept, room)
        self._audio[layer] = _by_head(kept), len(tokens_LUH)
        return self._audio[layer][0][:room]

    def hear(self, keys: AudioKeys) -> None:
        """More audio of each recording, behind what it holds; what was projected stays."""
        self.heard = replace(
            self.heard,
            tokens_LUH=torch.cat([self.heard.tokens_LUH, keys.tokens_LBD]),
            audio_of_UL=torch.cat([self.heard.audio_of_UL, keys.audio_of_BL.cpu()], 1),
        )

    def select(self, rows: Sequence[int]) -> None:
        """These rows go on, in this order; one may go on several times. A recording that nobody hears is forgotten."""
        row_B = torch.tensor(rows)
        self.read_B = self.read_B[row_B]
        recording_B = self.heard.recording_B[row_B]
        on_device = row_B.to(self.heard.tokens_LUH.device)
        self._text = {
            layer: (key.index_select(1, on_device), value.index_select(1, on_device))
            for layer, (key, value) in self._text.items()
        }
        still_U, recording_B = torch.unique(recording_B, return_inverse=True)
        self.heard = replace(self.heard, recording_B=recording_B)
        if len(still_U) < self.heard.tokens_LUH.shape[1]:
            on_device = still_U.to(on_device.device)
            self.heard = replace(
                self.heard,
                tokens_LUH=self.heard.tokens_LUH.index_select(1, on_device),
                audio_of_UL=self.heard.audio_of_UL[still_U],
            )
            self._audio = {
                layer: (_by_head(x.index_select(1, on_device)), known) for layer, (x, known) in self._audio.items()
            }

    def join(self, other: "DecoderCache") -> None:
        """The rows of another one come behind these; it is not to be used any more.

        Every row of both has read something since it heard its audio.
        """
        self.room = max(self.room, other.room)
        for layer, pair in other._text.items():
            more_LBND = (with_zero_keys(x_LBND, self.room) for x_LBND in pair)
            own_LBND = (with_zero_keys(x_LBND, self.room) for x_LBND in self._text[layer])
            key_LBND, value_LBND = (torch.cat(both, 1) for both in zip(own_LBND, more_LBND, strict=True))
            self._text[layer] = key_LBND, value_LBND
        ours, theirs = self.heard, other.heard
        length = max(len(ours.tokens_LUH), len(theirs.tokens_LUH))
        for layer, (more, known) in other._audio.items():
            own, own_known = self._audio[layer]
            assert (own_known, known) == (len(ours.tokens_LUH), len(theirs.tokens_LUH)), "what is heard was attended to"
            room = max(len(own), len(more))
            # Behind the shorter recordings stand zero keys, where their tokens are zero, too.
            joined = torch.cat([with_zero_keys(own, room), with_zero_keys(more, room)], 1)
            self._audio[layer] = _by_head(joined), length
        self.heard = HeardAudio(
            torch.cat([with_zero_keys(ours.tokens_LUH, length), with_zero_keys(theirs.tokens_LUH, length)], 1),
            torch.cat([_padded(ours.audio_of_UL, length), _padded(theirs.audio_of_UL, length)]),
            torch.cat([ours.recording_B, theirs.recording_B + ours.tokens_LUH.shape[1]]),
        )
        self.read_B = torch.cat([self.read_B, other.read_B])

    def back_to(self, read: int) -> None:
        """Rows have read no more than this of their text; what they read behind it is overwritten."""
        self.read_B = self.read_B.clamp(max=read)

    def copy(self) -> "DecoderCache":
        """One that goes on by itself from here."""
        other = copy.copy(self)
        other._text = {layer: (key.clone(), value.clone()) for layer, (key, value) in self._text.items()}
        other._audio = dict(self._audio)  # never written to in place
        return other


def with_zero_keys(x_LB: Tensor, length: int) -> Tensor:
    """Filled up with zeros to ``length`` along the first dimension."""
    more = length - len(x_LB)
    return torch.cat([x_LB, x_LB.new_zeros(more, *x_LB.shape[1:])]) if more > 0 else x_LB


def _by_head(x_LUN2D: Tensor) -> Tensor:
    """The same, with the keys of a head in one piece, and its values; no copy where they lie so already."""
    return x_LUN2D.permute(3, 1, 2, 0, 4).contiguous().permute(3, 1, 2, 0, 4)


def _padded(audio_of_UL: Tensor, length: int) -> Tensor:
    return F.pad(audio_of_UL, (0, length - audio_of_UL.shape[1]), value=-1)


@dataclass(frozen=True)
class CachedText:
    """Stands for the mask of self-attention."""

    cache: DecoderCache
    place_BS: Tensor
    """Position of each token in its row."""
    longest: int
    """Keys that this call may see."""
    mask_B1SL: Tensor | None


@dataclass(frozen=True)
class CachedAudio:
    """Stands for the audio tokens. The queries of all rows of a recording are positions of one row: its keys and values
    exist once."""

    cache: DecoderCache
    mask_U1SL: Tensor | None
    """Of the folded queries, or None where everything is visible."""
    recording_B: Tensor
    slot_B: Tensor
    """Place of each row among those of its recording."""
    slots: int
    one_each: bool
    """Every row has a recording of its own, in the same order: there is nothing to fold."""

    @classmethod
    def of(cls, cache: DecoderCache, mask_B1SL: Tensor | None) -> "CachedAudio":
        recording_B = cache.heard.recording_B
        earlier_BB = (recording_B[:, None] == recording_B).tril(-1)
        slot_B = earlier_BB.sum(1)
        one_each = torch.equal(recording_B, torch.arange(cache.heard.tokens_LUH.shape[1]))
        device = cache.heard.tokens_LUH.device
        folding = cls(cache, None, recording_B.to(device), slot_B.to(device), int(slot_B.max()) + 1, one_each)
        if mask_B1SL is None:
            return folding
        mask_U1SL = folding.fold(mask_B1SL.permute(2, 0, 1, 3)).permute(1, 2, 0, 3)
        return replace(folding, mask_U1SL=mask_U1SL)

    def fold(self, x_SB: Tensor) -> Tensor:
        """[S, B, ...] as [S * G, U, ...]; places that no row has are 0."""
        if self.one_each:
            return x_SB
        recordings = self.cache.heard.tokens_LUH.shape[1]
        folded = x_SB.new_zeros(x_SB.shape[0], self.slots, recordings, *x_SB.shape[2:])
        folded[:, self.slot_B, self.recording_B] = x_SB
        return folded.flatten(0, 1)

    def unfold(self, x_SU: Tensor) -> Tensor:
        """Back to [S, B, ...]."""
        if self.one_each:
            return x_SU
        x_SGU = x_SU.view(-1, self.slots, *x_SU.shape[1:])
        return x_SGU[:, self.slot_B, self.recording_B]
