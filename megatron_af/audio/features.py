"""Encoder features of a step's clips: read from the feature cache where it has them, encoded where it has not.

    features = ClipFeatures.of(config, front, device)       # a cache, if the encoder is frozen and a folder is set
    known = features.look_up(clips)                         # in the data thread: known.missing wants mel
    features_WLD = features(audio)                          # in the step, from StepAudio; new ones are kept
    features.close()

Nobody else knows that there is a cache.

W windows, F mel frames, M mel bins, L tokens of a window, D feature dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from megatron_af.audio.feature_cache import FeatureCache, encoder_digest
from megatron_af.audio.recompute import WINDOWS_AT_ONCE, recomputed
from megatron_af.config import Config
from megatron_af.data.batch import HeardClip, StepAudio
from megatron_af.parallel.transfer import send, there


class Encodes(Protocol):
    """What is asked for features: ``megatron_af.model.AudioFront``."""

    tokens_per_window: int
    feature_dim: int

    def encode(self, mel_WFM: Tensor) -> Tensor: ...

    def get_submodule(self, target: str) -> torch.nn.Module: ...


@dataclass(frozen=True, kw_only=True)
class KnownFeatures:
    """What the cache had of a rank's clips when their batch was made."""

    keys: tuple[str, ...]
    """Under which the features of each clip are kept; empty: not to be kept."""
    found: tuple[Tensor | None, ...]
    """Features (W, L, D) of each clip, on the host."""

    @property
    def missing(self) -> list[int]:
        return [place for place, feature_WLD in enumerate(self.found) if feature_WLD is None]

    def without(self, spoiled: Sequence[int]) -> "KnownFeatures":
        return replace(self, keys=tuple("" if i in spoiled else key for i, key in enumerate(self.keys)))


class ClipFeatures:
    """
    Args:
        cache: None: every clip is encoded in every step.
        dtype: of the features.
    """

    def __init__(
        self, front: Encodes, device: torch.device, dtype: torch.dtype, cache: FeatureCache | None = None
    ) -> None:
        self._front, self._device, self._dtype, self._cache = front, device, dtype, cache

    @classmethod
    def of(cls, config: Config, front: Encodes, device: torch.device) -> Self:
        """With the run's cache, unless the encoder trains: then its features are worth nothing in the next step.

        Weights must be loaded and ``requires_grad`` be final.
        """
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        encoder = front.get_submodule("encoder")
        cache = None
        if config.data.feature_cache and not any(parameter.requires_grad for parameter in encoder.parameters()):
            folder = Path(config.data.feature_cache)
            cache = FeatureCache(folder, config.model.front_end, encoder_digest(encoder), config.precision)
        return cls(front, device, dtype, cache)

    def look_up(self, clips: Sequence[HeardClip]) -> KnownFeatures:
        """What there is of some clips, and so which ones' mel is wanted."""
        if self._cache is None:
            return KnownFeatures(keys=("",) * len(clips), found=(None,) * len(clips))
        keys = [_key(self._cache, clip) for clip in clips]
        return KnownFeatures(keys=tuple(keys), found=tuple(self._cache.lookup(keys)))

    def __call__(self, audio: StepAudio, windows: Sequence[int]) -> Tensor:
        """Features ``features_WLD`` of this rank's clips, clip after clip, on the device.

        Args:
            windows: of each clip that this rank owns.
        """
        encoded_WLD = self._nothing() if audio.mel_WFM is None else encoded(self._front, audio.mel_WFM)
        known = audio.known
        if not isinstance(known, KnownFeatures):  # nobody looked anything up
            return encoded_WLD
        missing = known.missing
        new = torch.split(encoded_WLD, [windows[i] for i in missing])
        if self._cache is not None:
            self._cache.store([known.keys[i] for i in missing], new)
        if len(missing) == len(known.found):
            return encoded_WLD
        parts = dict(zip(missing, new, strict=True))
        found = {place: feature_WLD for place, feature_WLD in enumerate(known.found) if feature_WLD is not None}
        send(list(found.values()), self._device)
        parts |= {place: there(feature_WLD, self._device).to(self._dtype) for place, feature_WLD in found.items()}
        return torch.cat([parts[place] for place in range(len(parts))])

    def _nothing(self) -> Tensor:
        """Features of no window: this rank owns no clip of the step, or none that must be encoded."""
        front = self._front
        return torch.zeros(0, front.tokens_per_window, front.feature_dim, device=self._device, dtype=self._dtype)

    def close(self) -> None:
        """New features reach the disk."""
        if self._cache is not None:
            self._cache.flush()


def _key(cache: FeatureCache, clip: HeardClip) -> str:
    """Of a recording that is gone or cannot be read, none: who makes its mel tells of it."""
    try:
        return cache.key(clip.digest(), clip.start, clip.duration, clip.windows)
    except OSError:
        return ""


def encoded(front: Encodes, mel_WFM: Tensor) -> Tensor:
    """Features of any number of windows, with the activations of ``WINDOWS_AT_ONCE`` of them."""
    parts = torch.split(mel_WFM, WINDOWS_AT_ONCE)
    if len(parts) == 1:
        return front.encode(mel_WFM)
    return torch.cat([recomputed(front.encode, part) for part in parts])
