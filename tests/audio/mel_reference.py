"""Log-mel windows of AF-CLAP in plain torch, for tests (the product's mel is DALI's).

``torchaudio.transforms.MelSpectrogram(16000, n_fft=1024, hop_length=160, f_min=50, f_max=8000, n_mels=64)``
followed by 10 log10 without a floor below the peak, as AF2's ``src/factory.py`` builds it.
"""

import torch
from torch import Tensor

from megatron_af.config import FrontEndConfig


def htk_filters(front_end: FrontEndConfig) -> Tensor:
    """(fft_size // 2 + 1, mel_bins) triangles equally spaced on the HTK mel scale, without normalisation."""

    def mel(hz: Tensor) -> Tensor:
        return 2595 * torch.log10(1 + hz / 700)

    low, high = mel(torch.tensor([front_end.min_hz, front_end.max_hz], dtype=torch.double))
    corners = torch.linspace(low.item(), high.item(), front_end.mel_bins + 2, dtype=torch.double)
    corners = 700 * (10 ** (corners / 2595) - 1)
    bins = torch.linspace(0, front_end.sample_rate / 2, front_end.fft_size // 2 + 1, dtype=torch.double)
    bins = bins[:, None]
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()


def log_mel(waveform_WS: Tensor, front_end: FrontEndConfig) -> Tensor:
    """(W, samples) -> (W, frames, mel bins) in dB."""
    spectrum = torch.stft(
        waveform_WS, front_end.fft_size, front_end.hop_samples, window=torch.hann_window(front_end.fft_size),
        center=True, pad_mode="reflect", return_complex=True,
    )  # fmt: skip
    power = spectrum.abs().square()
    return 10 * torch.log10((power.transpose(1, 2) @ htk_filters(front_end)).clamp(min=1e-10))
