"""What an audio encoder is: a network from mel windows to tokens, and what must be known of it before it is built.

    encoder = encoder_of(config.model.encoder)               # of ``model.encoder.kind``
    encoder.tokens_per_window, encoder.feature_dim, list(encoder.problems(front_end))
    network = encoder.build(front_end)                       # (W, F, M) -> (W, tokens_per_window, feature_dim)

``kind`` names a built-in encoder, or ``module:Class`` of anybody's own: a subclass of :class:`AudioEncoder` in one
file, with its sizes in ``model.encoder.settings``. HTS-AT's class needs torch in ``build`` alone, so that
configurations are checked without it.

Shapes: W windows, F mel frames, M mel bins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from megatron_af.config import EncoderConfig, FrontEndConfig
from megatron_af.flops import Tally

if TYPE_CHECKING:
    from torch import nn


class AudioEncoder(ABC):
    """Its parameters are called ``encoder.*`` in the whole model."""

    feature_key: str = "model.encoder.settings"
    """The key, or the product of keys, that its width follows from."""

    def __init__(self, config: EncoderConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def tokens_per_window(self) -> int:
        """Vectors that a window becomes."""

    @property
    @abstractmethod
    def feature_dim(self) -> int:
        """Length of each; 0 while the settings give none."""

    @property
    @abstractmethod
    def time_steps(self) -> int:
        """Equal parts of a window that its tokens stand for: token l begins with part l modulo this number."""

    @abstractmethod
    def problems(self, front_end: FrontEndConfig) -> Iterator[str]:
        """Why it cannot be built, or not hear what this front end makes: keys and fixes."""

    @abstractmethod
    def tally(self, tally: Tally) -> bool:
        """Tell the products for a window; returns whether a gradient flows into the features."""

    @abstractmethod
    def build(self, front_end: FrontEndConfig, *, pretraining: bool = False) -> nn.Module:
        """The network, with fresh weights drawn from torch's generator.

        dB mel windows (W, F, M) in float32 go in, features (W, tokens_per_window, feature_dim) in the type of its
        weights come out. By ``front_end.long_clips = views`` a window is a clip in views, (W, V, F, M), the last three
        NaN where it is no longer than a window. A parameter that nothing computes with has a true attribute ``unused``.

        Args:
            pretraining: it trains contrastively; statistics that later stand still are learnt.
        """


def encoder_of(config: EncoderConfig) -> AudioEncoder:
    """
    Raises:
        UnknownComponent: ``model.encoder.kind`` names none.
    """
    found: AudioEncoder = config.component
    return found
