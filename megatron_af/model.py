"""Audio Flamingo = the audio side (encoder, transformation layers, rows of added tokens) + the decoder.

    model = build(config, vocabulary, device)

The audio side is plain torch and knows nothing of parallelism; the decoder is megatron-core's. Shapes: W windows,
F mel frames, M mel bins, L tokens of a window, B clips, T packed tokens, D audio width, N added rows, H hidden.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dali_pipes.sound import FLOOR_DB
from megatron_af.audio.encoder import encoder_of
from megatron_af.audio.joint_rows import joint_keys, padded_rows
from megatron_af.audio.recompute import WINDOWS_AT_ONCE, recomputed
from megatron_af.audio.transform import TransformationLayers
from megatron_af.config import Config, ConfigError
from megatron_af.data.batch import AudioKeys
from megatron_af.decoder.lm import AudioLM
from megatron_af.decoder.transformer_config import transformer_config
from megatron_af.parallel.device import Device
from megatron_af.parallel.global_state import canonical_name

PADDING = 0.1
"""Padded positions that a group of clips may have in the transformation layers, as a fraction of its own."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What the model must know of the tokenizer."""

    first_added_id: int
    """Id of the first special token behind the language model's own."""
    num_added: int


class AudioFront(nn.Module):
    """From the mel windows of some clips to their audio tokens; also keeps the rows of added tokens."""

    def __init__(self, config: Config, vocabulary: Vocabulary) -> None:
        super().__init__()
        model = config.model
        self.sees, self.row_windows = model.transform.sees, model.transform.row_windows
        self.mel_shape = (model.front_end.window_frames, model.front_end.mel_bins)
        self.tokens_per_window = model.encoder.tokens_per_window
        self.feature_dim = model.encoder.feature_dim
        self.encoder = encoder_of(model.encoder).build(model.front_end)
        causal = self.tokens_per_window if model.transform.sees == "past" else 0
        self.transform = TransformationLayers(model.encoder.feature_dim, model.transform, causal=causal)
        self.added_rows = nn.Parameter(torch.zeros(vocabulary.num_added, model.lm.hidden))
        # megatron-core asks every model it reduces gradients for about these two.
        self.share_embeddings_and_output_weights = False
        self.vp_stage: int | None = None

    def encode(self, mel_WFM: Tensor) -> Tensor:
        """Encoder features ``features_WLD`` of dB mel windows."""
        features_WLD: Tensor = self.encoder(mel_WFM)  # decibels stay float32 up to the mel norm
        return features_WLD

    @property
    def dtype(self) -> torch.dtype:
        return self.transform.layer_norm.weight.dtype

    def forward(self, features_WLD: Tensor, windows: Sequence[int]) -> Tensor:
        """
        Args:
            features_WLD: encoder features of some clips' windows, clip after clip.
            windows: number of windows of each clip.

        Returns:
            tokens_TD: each clip's audio tokens, clip after clip, without padding.
        """
        if self.sees == "row":
            raise ValueError("model.transform.sees = row: there are tokens of rows (row_keys), none of single clips")
        features_WLD = features_WLD.to(self.dtype)
        if not windows:
            return features_WLD.flatten(0, 1)
        clips = [clip_WLD.flatten(0, 1) for clip_WLD in torch.split(features_WLD, list(windows))]
        keeps_inputs_alone = sum(windows) > WINDOWS_AT_ONCE and torch.is_grad_enabled()
        tokens: dict[int, Tensor] = {}
        for group in length_groups(windows):
            own = [clips[clip] for clip in group]
            made = recomputed(self._together, *own) if keeps_inputs_alone else self._together(*own)
            tokens |= dict(zip(group, made, strict=True))
        return torch.cat([tokens[clip] for clip in range(len(clips))])

    def _together(self, *clips_LD: Tensor) -> list[Tensor]:
        """Some clips' features to their tokens, [L, D] of each, in one run of the layers."""
        lengths = [len(clip_LD) for clip_LD in clips_LD]
        padded_BLD = pad_sequence(list(clips_LD), batch_first=True)
        rows_BLD = self.transform(padded_BLD, valid_positions(lengths, padded_BLD.device))
        return [row_LD[:length] for row_LD, length in zip(rows_BLD, lengths, strict=True)]

    def row_keys(
        self, features_WLD: Tensor, windows: Sequence[int], clips_of_row: Sequence[Sequence[int]]
    ) -> AudioKeys:
        """What rows hear where the transformation layers see whole rows (``model.transform.sees``).

        Args:
            clips_of_row: of each row, its clips, as places in ``windows``.
        """
        silence_1FM = torch.full((1, *self.mel_shape), FLOOR_DB, device=features_WLD.device)
        silence_LD = self.encode(silence_1FM)[0].to(self.dtype)
        rows = padded_rows(features_WLD.to(self.dtype), windows, clips_of_row, self.row_windows, silence_LD)
        return joint_keys(self.transform, rows)


def length_groups(windows: Sequence[int], padding: float = PADDING, at_once: int = WINDOWS_AT_ONCE) -> list[list[int]]:
    """Clips that run through the transformation layers together, longest first.

    Clips of one length share a call; so do shorter ones, as long as they add no more padding than ``padding`` of what
    the group holds of its own, and as long as the call takes no more than ``at_once`` windows. A batch is therefore
    never padded to its longest clip, and never cut into more calls than that takes.
    """
    groups: list[list[int]] = []
    longest = own = 0
    for clip in sorted(range(len(windows)), key=lambda clip: -windows[clip]):
        padded = longest * (len(groups[-1]) + 1) if groups else 0
        if groups and padded <= min(at_once, (1 + padding) * (own + windows[clip])):
            groups[-1].append(clip)
            own += windows[clip]
        else:
            groups.append([clip])
            longest = own = windows[clip]
    return groups


def valid_positions(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """True where a right-padded row is its clip's own, [B, L]; None where no row is padded."""
    longest = max(lengths)
    if min(lengths) == longest:
        return None
    valid_BL = torch.zeros(len(lengths), longest, dtype=torch.bool, device=device)
    for row_L, length in zip(valid_BL, lengths, strict=True):
        row_L[:length] = True  # filled on the device: a mask made on the host would be a copy that the host waits for
    return valid_BL


@dataclass(frozen=True, kw_only=True)
class AudioFlamingo:
    """The parts of the model that live on this rank."""

    front: nn.Module
    """``AudioFront``; in a contrastive stage ``megatron_af.audio.clap.ClapModel``, with no chunks beside it."""
    chunks: list[AudioLM]
    """One per model chunk of this pipeline stage (more than one under the interleaved schedule)."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters of this rank under their canonical names, the same in every layout."""
        yield from self.front.named_parameters()
        for chunk in self.chunks:
            for name, parameter in chunk.named_parameters():
                yield canonical_name(chunk, name), parameter

    @torch.no_grad()
    def start_added_rows_at_mean(self, group: dist.ProcessGroup) -> None:
        """Give fresh rows of added tokens the mean of the language model's own rows; a collective of ``group``.

        Args:
            group: the ranks of one copy of the decoder.
        """
        assert isinstance(self.front, AudioFront)
        added_rows_NH = self.front.added_rows
        total_H = torch.zeros(added_rows_NH.shape[1] + 1, device=added_rows_NH.device)
        for chunk in self.chunks:
            if chunk.pre_process:
                # Rows from the first added id on are untrained, as those of Qwen2.5's table behind its tokenizer.
                known = chunk.table.local(min(chunk.table.vocab, chunk.table.first_added_id))
                total_H[:-1] += chunk.embedding.word_embeddings.weight[:known].float().sum(0)
                total_H[-1] += known
        dist.all_reduce(total_H, group=group)
        added_rows_NH.copy_((total_H[:-1] / total_H[-1]).expand_as(added_rows_NH))


def build(
    config: Config, vocabulary: Vocabulary, device: Device, *, drawn: Callable[[str], bool] = lambda name: True
) -> AudioFlamingo:
    """Build this rank's share of the model with fresh weights. Process groups must exist.

    Args:
        drawn: whether a weight of the decoder gets a first value, by its canonical name; the others must be loaded.

    Raises:
        ConfigError: the tokenizer has more words than the decoder.
    """
    if problem := config.model.lm.too_few_rows(vocabulary.first_added_id):
        raise ConfigError("the model has too few words", [problem])
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    lm_config = transformer_config(config, device)
    num_chunks = config.parallel.virtual_pipeline
    chunks = []
    for chunk in range(num_chunks):
        vp_stage = chunk if num_chunks > 1 else None
        chunks.append(
            AudioLM(
                config,
                lm_config,
                first_added_id=vocabulary.first_added_id,
                added_tokens=vocabulary.num_added,
                pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
                post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
                vp_stage=vp_stage,
                drawn=drawn,
            ).to(device.torch)
        )
    # Every rank draws the same weights for its copy of the audio side, whatever it drew for its decoder share.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        front = AudioFront(config, vocabulary)
    front.vp_stage = 0 if num_chunks > 1 else None
    for parameter in front.parameters():  # parameters only: running statistics and position tables stay float32
        parameter.data = parameter.data.to(device.torch, dtype)
    return AudioFlamingo(front=front.to(device.torch), chunks=chunks)
