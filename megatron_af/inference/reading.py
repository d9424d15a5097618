"""What a model has heard and read so far of some rows, and what it expects next.

    reading = Reading(model, tokenizer, heard_audio(front, audio, [(0,), (0,), (1, 2)]))
    logits_BV = reading.read([[5, 7], [5], [6, 6, 6]])      # behind the last token of each row
    reading.select([0, 2])                                  # rows that go on, in this order; one may go on twice
    logits_BV = reading.read([[8], [9]])                    # keys and values of what was read are kept

Every rank of a model-parallel group makes the same calls and gets the same logits: tensor-parallel ranks compute them
together, pipeline stages hand hidden states on, and the last one tells all.

Shapes: S text positions of a call, B rows, L audio tokens, U recordings, T packed audio tokens, W windows, D audio
width, H hidden, V vocabulary.
"""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_af.audio.encode_ahead import key_layout
from megatron_af.audio.features import encoded
from megatron_af.data.batch import IGNORED, AudioKeys, StepAudio, TextRows
from megatron_af.decoder.cache import DecoderCache, HeardAudio
from megatron_af.decoder.lm import AudioLM
from megatron_af.model import AudioFlamingo, AudioFront
from megatron_af.parallel.device import current_device
from megatron_af.text.tokenizer import Tokenizer

LENGTH_MULTIPLE = 8
"""Texts of several tokens are filled up to it: aligned for the kernels, and of few shapes."""


class Reading:
    """
    Args:
        model: one chunk on each pipeline stage.
        heard: the audio of each row.
        immediate: a position hears the latest audio before it alone (``model.cross_attention.immediate``).
    """

    def __init__(
        self, model: AudioFlamingo, tokenizer: Tokenizer, heard: HeardAudio, *, immediate: bool = False
    ) -> None:
        front = model.front
        assert isinstance(front, AudioFront)
        (self._decoder,) = model.chunks
        self._decoder.eval()
        self._added_rows_NH, self._tokenizer, self._immediate = front.added_rows, tokenizer, immediate
        self._cache = DecoderCache(heard)
        self._marks_B = np.zeros(len(heard.recording_B), np.int64)
        """``<audio>`` tokens that each row has read."""

    @property
    def lengths(self) -> list[int]:
        """Tokens that each row has read."""
        lengths: list[int] = self._cache.read_B.tolist()
        return lengths

    @property
    def recordings(self) -> list[int]:
        """Which recording each row hears; rows of one share what it gives."""
        recordings: list[int] = self._cache.heard.recording_B.tolist()
        return recordings

    def room(self, prompt: Sequence[int]) -> int | None:
        """Most tokens of an answer to a prompt, the last of which is not read; None: as many as one likes."""
        places = self._decoder.places
        return None if places is None else places - len(prompt) + 1

    @torch.inference_mode()
    def read(self, ids: Sequence[Sequence[int]], *, every: bool = False) -> Tensor:
        """Float32 logits [B, V] behind the last new token of each row.

        Args:
            ids: new tokens of each row, one at least.
            every: behind each of them instead: [B, S, V], right padded.
        """
        rows = self._rows(ids)
        position_B = None if every else torch.tensor([len(new) - 1 for new in ids])
        size = (len(ids), rows.ids_BS.shape[1]) if every else (len(ids),)
        return through_stages(
            self._decoder,
            lambda: self._decoder.extend(rows, self._added_rows_NH, self._cache, position_B=position_B),
            hidden=(rows.ids_BS.shape[1], len(ids)),
            logits=size,
        )

    def read_on(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """:meth:`read` what each row has not read yet of these tokens, its whole text."""
        return self.read([own[length:] for own, length in zip(ids, self.lengths, strict=True)])

    def select(self, rows: Sequence[int]) -> None:
        """These rows go on."""
        self._cache.select(rows)
        self._marks_B = self._marks_B[list(rows)]

    def join(self, other: "Reading") -> None:
        """The rows of another one come behind these; both have read something."""
        self._cache.join(other._cache)
        self._marks_B = np.concatenate([self._marks_B, other._marks_B])

    def hear(self, keys: AudioKeys) -> None:
        """More audio of each recording; what the text says after its next mark hears it."""
        self._cache.hear(keys)

    def back_to(self, ids: Sequence[int]) -> None:
        """The one row has read no more than these tokens."""
        self._cache.back_to(len(ids))
        self._marks_B[:] = sum(token == self._tokenizer.audio_id for token in ids)

    def copy(self) -> "Reading":
        """One that goes on by itself from here."""
        other = copy.copy(self)
        other._cache, other._marks_B = self._cache.copy(), self._marks_B.copy()
        return other

    def _rows(self, ids: Sequence[Sequence[int]]) -> TextRows:
        longest = max(map(len, ids))
        length = longest if longest == 1 else -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        ids_BS = np.full((len(ids), length), self._tokenizer.pad_id, np.int64)
        segment_BS = np.full(ids_BS.shape, -1, np.int32)
        for b, new in enumerate(ids):
            ids_BS[b, : len(new)], segment_BS[b, : len(new)] = new, 0
        marks_BS = self._marks_B[:, None] + np.cumsum(ids_BS == self._tokenizer.audio_id, axis=1)
        self._marks_B = marks_BS[:, -1]
        audios_B1 = self._cache.heard.audios_B.numpy()[:, None]
        last_BS = np.minimum(np.maximum(marks_BS - 1, 0), audios_B1 - 1).astype(np.int32)
        first_BS = np.where(audios_B1 > 0, last_BS, 0) if self._immediate else np.zeros_like(last_BS)
        return TextRows(
            ids_BS=torch.from_numpy(ids_BS),
            labels_BS=torch.full(ids_BS.shape, IGNORED),
            segment_BS=torch.from_numpy(segment_BS),
            first_audio_BS=torch.from_numpy(first_BS.astype(np.int32)),
            last_audio_BS=torch.from_numpy(last_BS),
            dataset_BS=torch.from_numpy(np.zeros_like(last_BS)),
            clips=((),) * len(ids),
        )


def through_stages(
    decoder: AudioLM, run: Callable[[], Tensor], *, hidden: tuple[int, int], logits: tuple[int, ...]
) -> Tensor:
    """What ``run`` gives on the last pipeline stage, on every stage; a collective of the pipeline's ranks.

    Args:
        hidden: [S, B] of the hidden states between two stages.
        logits: of the result, without its last dimension.
    """
    group = parallel_state.get_pipeline_model_parallel_group()
    if group.size() == 1:
        return run()
    stage, config, device = group.rank(), decoder.config, current_device().torch
    if not decoder.pre_process:
        hidden_SBH = torch.empty(*hidden, config.hidden_size, dtype=config.params_dtype, device=device)
        dist.recv(hidden_SBH, group=group, group_src=stage - 1)
        decoder.set_input_tensor(hidden_SBH)
    output = run()
    if not decoder.post_process:
        dist.send(output.contiguous(), group=group, group_dst=stage + 1)
        output = torch.empty(*logits, decoder.table.num_tokens, device=device)
    output = output.contiguous()
    dist.broadcast(output, group=group, group_src=group.size() - 1)
    return output


@torch.no_grad()
def heard_audio(front: AudioFront, audio: StepAudio, clips_of_row: Sequence[tuple[int, ...]]) -> HeardAudio:
    """What rows hear, where one rank owns all clips of the batch; rows of the same clips share it."""
    distinct = list(dict.fromkeys(clips_of_row))
    place = {clips: index for index, clips in enumerate(distinct)}
    return HeardAudio.of(audio_keys(front, audio, distinct), [place[clips] for clips in clips_of_row])


def audio_keys(front: AudioFront, audio: StepAudio, clips_of_row: Sequence[tuple[int, ...]]) -> AudioKeys:
    """Audio tokens of every row's clips, where one rank owns all clips of the batch."""
    per_window, windows = front.tokens_per_window, list(audio.clip_windows)
    starts = (torch.tensor([0, *windows]).cumsum(0) * per_window).tolist()
    if front.sees == "row":
        features_WLD = front.added_rows.new_zeros(0, per_window, front.feature_dim)
        if audio.mel_WFM is not None:
            features_WLD = encoded(front, audio.mel_WFM)
        return front.row_keys(features_WLD, windows, clips_of_row)
    index_BL, audio_of_BL = key_layout(clips_of_row, audio.clip_windows, dict(enumerate(starts)), per_window)
    if audio.mel_WFM is None:
        tokens_TD = front.added_rows.new_zeros(1, front.feature_dim)
    else:
        tokens_TD = front(encoded(front, audio.mel_WFM), windows)
    return AudioKeys(tokens_LBD=tokens_TD[index_BL.t().to(tokens_TD.device)], audio_of_BL=audio_of_BL)
