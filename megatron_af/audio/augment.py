"""Augmentations of the HTS-AT recipe on normalised mel windows (W, F, M), in training only.

mel_WFM = SpecAugment(64, 8)(mel_WFM)
set_augment(model, stage.augment, config.model.front_end)         # before a stage trains
partner_B, share_B = draw_mix_up(num_clips, alpha=0.5); mel_WFM = mix(mel_WFM, partner_B, share_B)
"""

import torch
from torch import Tensor, nn

from megatron_af.config import AugmentConfig, FrontEndConfig

STRIPES = 2
TIME_SHARE = 64 / 1001
"""Of a window: 64 frames of HTS-AT's 10 s, and as much less of a shorter one, of which 64 would leave little."""
FREQUENCY_WIDTH = 8
"""Mel bins."""


class SpecAugment(nn.Module):
    """Blanks stripes of time and of frequency, others for each window (Park et al. 2019).

    Args:
        frames, bins: no stripe is as long, or as wide; 0: there is none.
    """

    def __init__(self, frames: int, bins: int) -> None:
        super().__init__()
        self.frames, self.bins = frames, bins

    @classmethod
    def of(cls, front_end: FrontEndConfig, *, on: bool) -> "SpecAugment":
        """In HTS-AT's sizes, as the shares of a window that they are there."""
        return cls(max(1, round(TIME_SHARE * front_end.window_frames)), FREQUENCY_WIDTH) if on else cls(0, 0)

    def forward(self, mel_WFM: Tensor) -> Tensor:
        if not self.training:
            return mel_WFM
        W, F, M = mel_WFM.shape
        if self.frames:
            mel_WFM = mel_WFM * _kept(W, F, self.frames, mel_WFM.device)[:, :, None]
        if self.bins:
            mel_WFM = mel_WFM * _kept(W, M, self.bins, mel_WFM.device)[:, None, :]
        return mel_WFM


def set_augment(model: nn.Module, augment: AugmentConfig | None, front_end: FrontEndConfig) -> None:
    """What a model's encoder blanks from now on; None: what it was built with."""
    if augment is None:
        return
    frames = round(augment.time_seconds * front_end.sample_rate / front_end.hop_samples)
    for module in model.modules():
        if isinstance(module, SpecAugment):
            module.frames = frames + 1 if augment.time_seconds else 0  # a width is drawn below these
            module.bins = augment.mel_bins + 1 if augment.mel_bins else 0


def _kept(windows: int, length: int, most: int, device: torch.device) -> Tensor:
    """(W, length) of which ``STRIPES`` stripes per window, each of less than ``most`` positions, are False."""
    width = torch.randint(most, (windows, STRIPES, 1), device=device)
    begin = (torch.rand(windows, STRIPES, 1, device=device) * (length - width)).long()
    position = torch.arange(length, device=device)
    return ~((position >= begin) & (position < begin + width)).any(1)


def draw_mix_up(clips: int, alpha: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each clip another one (itself, if alone), and its own share in [0.5, 1] (Zhang et al. 2018)."""
    partner_B = torch.arange(clips, device=device).roll(1)
    share = torch.distributions.Beta(alpha, alpha).sample((clips,)).to(device)
    return partner_B, torch.maximum(share, 1 - share)


def mix(mel_WFM: Tensor, partner_W: Tensor, share_W: Tensor) -> Tensor:
    """Sound pressure levels do not add in dB: powers do."""
    power = torch.pow(10.0, mel_WFM / 10)
    share = share_W[:, None, None]
    return 10 * torch.log10(share * power + (1 - share) * power[partner_W])
