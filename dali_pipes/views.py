"""A clip of any length as four views of one window's size, as LAION-CLAP's fused encoder hears it.

    views_VFM = views(mel_FM, 1001)         # mel of the whole clip, at least a window

The first view is the whole clip, shrunk to a window's frames. The others are a window out of each third of where one
may begin. The reference draws where (``ClapFeatureExtractor._random_mel_fusion`` of transformers, ``get_mel`` and
``get_audio_features`` of laion_clap); here it is the third's middle, so that a recording always has one embedding. A
clip that is no longer than a window has the first view alone: the others are NaN.

V views, F frames, M mel bins.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_af.config.model import VIEWS


def views(mel_FM: Tensor, window: int) -> Tensor:
    """views_VFM of ``window`` frames each."""
    if len(mel_FM) == window:
        return torch.cat([mel_FM[None], mel_FM.new_full((VIEWS - 1, *mel_FM.shape), torch.nan)])
    whole = F.interpolate(mel_FM[None, None], (window, mel_FM.shape[1]), mode="bilinear", align_corners=False)[0, 0]
    return torch.stack([whole, *(mel_FM[start : start + window] for start in view_starts(len(mel_FM), window))])


def view_starts(frames: int, window: int) -> list[int]:
    """Frames at which the three windows begin; a third without any gives the first frame, as in the reference."""
    thirds = np.array_split(np.arange(frames - window + 1), VIEWS - 1)
    return [int(third[len(third) // 2]) if len(third) else 0 for third in thirds]
