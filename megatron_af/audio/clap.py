"""CLAP: HTS-AT and a text tower that meet in a joint space.

    model = ClapModel(config, tokenizer)
    ids_TS, real_TS = model.clap.text.tokenize(["a dog barks", "rain falls"])
    audio_BJ = model.embed_audio(mel_WFM, windows=[1, 3])        # one unit vector per clip
    text_TJ = model.embed_text(ids_TS, real_TS)                  # one unit vector per text

A tower's output is averaged, the encoder's over all tokens of a clip or of a part of it, and projected by two layers.
An encoder that gives one vector per window (``model.encoder.vector``) has projected it already.

Gradient caching (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"): of more
than ``WINDOWS_AT_ONCE`` windows only their vectors are kept, and the backward pass goes through the encoder again, part
by part. A loss over any batch needs the memory of one part, its windows and its vectors.
Source: Wu et al. 2023 (LAION-CLAP) and the AFClap folder of Audio Flamingo 2.

Shapes: W windows, F mel frames, M mel bins, L tokens of a window, D feature dim, B clips, T texts, S text positions,
H text hidden, J joint dim.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_af.audio.clap_loss import exact
from megatron_af.audio.encoder import encoder_of
from megatron_af.audio.mel_norm import MelNorm
from megatron_af.audio.projection import projection
from megatron_af.audio.recompute import WINDOWS_AT_ONCE, recomputed
from megatron_af.audio.text_tower import TextTokenizer, TextTower
from megatron_af.config import LOWEST_TEMPERATURE, ClapConfig, EncoderConfig, FrontEndConfig, ModelConfig


class ClapModel(nn.Module):
    """The encoder under the same names as in Audio Flamingo (``encoder.*``), everything else under ``clap.*``."""

    def __init__(self, config: ModelConfig, tokenizer: TextTokenizer | None) -> None:
        """``tokenizer`` serves a fresh text tower; one that is loaded brings its own."""
        super().__init__()
        self.front_end, self.joint_dim = config.front_end, config.clap.joint_dim
        encoder = encoder_of(config.encoder)
        self.time_steps = encoder.time_steps
        self.encoder = encoder.build(config.front_end, pretraining=True)
        self.clap = JointSpace(config.clap, config.encoder, tokenizer)
        # megatron-core asks every model it reduces gradients for about these two.
        self.share_embeddings_and_output_weights = False
        self.vp_stage = None

    def embed_audio(
        self, mel_WFM: Tensor, windows: Sequence[int], parts: Sequence[tuple[int, float, float]] | None = None
    ) -> Tensor:
        """
        Args:
            mel_WFM: dB mel windows of some clips, clip after clip.
            windows: number of windows of each clip.
            parts: (clip, start, end) in seconds of the parts to embed; None: every clip whole.

        Returns:
            audio_BJ: float32 vectors of length 1.
        """
        if len(mel_WFM) <= WINDOWS_AT_ONCE:
            return self._embed_together(mel_WFM, windows, parts)
        parts = parts or [(clip, 0, math.inf) for clip in range(len(windows))]
        norms = [norm for norm in self.encoder.modules() if isinstance(norm, MelNorm)]
        self.encoder.train(self.encoder.training)  # parts may have been frozen since the last call
        statistics = [norm.statistics(mel_WFM) for norm in norms]

        def together(mel_WFM: Tensor, windows: Sequence[int], parts: Sequence[tuple[int, float, float]]) -> Tensor:
            with ExitStack() as fixed:
                for norm, taken in zip(norms, statistics, strict=True):
                    fixed.enter_context(norm.by(taken))
                return self._embed_together(mel_WFM, windows, parts)

        begins = list(accumulate(windows, initial=0))
        order, found = [], []
        for first, end in clips_together(windows, WINDOWS_AT_ONCE):
            if own := [place for place, (clip, *_) in enumerate(parts) if first <= clip < end]:
                own_parts = [(parts[place][0] - first, *parts[place][1:]) for place in own]
                mel = mel_WFM[begins[first] : begins[end]]
                found.append(recomputed(together, mel, windows[first:end], own_parts))
                order += own
        return torch.cat(found)[torch.tensor(order, device=mel_WFM.device).argsort()]

    def _embed_together(
        self, mel_WFM: Tensor, windows: Sequence[int], parts: Sequence[tuple[int, float, float]] | None
    ) -> Tensor:
        features_WLD = self.encoder(mel_WFM)
        if parts is None or all(start == 0 and end == math.inf for _, start, end in parts):
            means_BD = clip_means(features_WLD, windows)
            if parts is not None:
                clip_B = torch.tensor([clip for clip, _, _ in parts], dtype=torch.int64, device=means_BD.device)
                means_BD = means_BD[clip_B]
        else:
            means_BD = part_means(features_WLD, windows, parts, self.front_end, self.time_steps)
        return self.clap.join_audio(means_BD)

    def embed_text(self, ids_TS: Tensor, real_TS: Tensor) -> Tensor:
        """Unit vectors text_TJ (float32) of texts as :meth:`TextTower.tokenize` returns them."""
        return self.clap.join_text(ids_TS, real_TS)

    @property
    def scale(self) -> Tensor:
        """1 / temperature."""
        return self.clap.log_scale.exp()


class JointSpace(nn.Module):
    """Text tower, projections of both towers, temperature."""

    log_scale: Tensor

    def __init__(self, config: ClapConfig, encoder: EncoderConfig, tokenizer: TextTokenizer | None) -> None:
        super().__init__()
        kind = encoder.vector or "mlp"
        self.text = TextTower(config, tokenizer)
        width = encoder.feature_dim
        self.audio_projection = nn.Identity() if encoder.vector else projection(kind, width, config.joint_dim)
        self.text_projection = projection(kind, self.text.width, config.joint_dim)
        log_scale = torch.tensor(-math.log(config.temperature))
        if config.learn_temperature:
            self.log_scale = nn.Parameter(log_scale)
            # Kept by the optimizer, not here: a clamped value would have no gradient, and never come back.
            self.log_scale.highest = -math.log(LOWEST_TEMPERATURE)  # type: ignore[attr-defined]
        else:
            self.register_buffer("log_scale", log_scale)

    def join_audio(self, means_BD: Tensor) -> Tensor:
        return F.normalize(exact(self.audio_projection(means_BD)), dim=-1)

    def join_text(self, ids_TS: Tensor, real_TS: Tensor) -> Tensor:
        return F.normalize(exact(self.text_projection(self.text(ids_TS, real_TS))), dim=-1)


def clips_together(windows: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Neighbouring clips (first, end) of ``most`` windows altogether, or one clip of more."""
    first = count = 0
    for clip, own in enumerate(windows):
        if clip > first and count + own > most:
            yield first, clip
            first, count = clip, 0
        count += own
    yield first, len(windows)


def clip_means(features_WLD: Tensor, windows: Sequence[int]) -> Tensor:
    """Mean over all tokens of each clip, means_BD."""
    counts_B = torch.tensor(windows, device=features_WLD.device)
    clip_W = torch.repeat_interleave(counts_B, output_size=len(features_WLD))
    means_WD = features_WLD.mean(1)
    sums_BD = means_WD.new_zeros(len(windows), means_WD.shape[1]).index_add(0, clip_W, means_WD)
    return sums_BD / counts_B[:, None]


def part_means(
    features_WLD: Tensor,
    windows: Sequence[int],
    parts: Sequence[tuple[int, float, float]],
    front_end: FrontEndConfig,
    steps: int,
) -> Tensor:
    """Mean over the tokens whose time step lies in each part (clip, start, end), at least the nearest one; means_BD.

    Token l of a window stands at time step l modulo ``steps`` (``AudioEncoder.time_steps``).
    """
    tokens, dim = features_WLD.shape[1:]
    stride = front_end.window_seconds - front_end.overlap_seconds
    middle_L = (np.arange(tokens) % steps + 0.5) * front_end.window_seconds / steps
    first_window = np.concatenate([[0], np.cumsum(windows)])
    index, part_of = [], []
    for part, (clip, start, end) in enumerate(parts):
        middle_T = (np.arange(windows[clip])[:, None] * stride + middle_L).ravel()
        inside = np.flatnonzero((middle_T >= start) & (middle_T < end))
        if not len(inside):
            distance = np.abs(middle_T - (start + end) / 2)
            inside = np.flatnonzero(distance <= distance.min() + 1e-6)
        index.append(inside + first_window[clip] * tokens)
        part_of.append(np.full(len(inside), part))
    index_T = torch.from_numpy(np.concatenate(index)).to(features_WLD.device)
    part_T = torch.from_numpy(np.concatenate(part_of)).to(features_WLD.device)
    sums_BD = features_WLD.new_zeros(len(parts), dim).index_add(0, part_T, features_WLD.reshape(-1, dim)[index_T])
    counts_B = torch.from_numpy(np.array([len(tokens_of) for tokens_of in index])).to(sums_BD)
    return sums_BD / counts_B[:, None]
