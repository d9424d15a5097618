"""The reference front end of Audio Flamingo 2, restated in numpy and torchaudio-free torch, window by window.

Restates AF2 data/data.py (``load_audio``, ``get_num_windows``, ``compute_sliding_window``) and the mel of
src/factory.py: centred reflect-padded power spectrogram, HTK or Slaney filters, 10 log10 clamped at 1e-10.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_af.config import FrontEndConfig


def filled(wave_T: NDArray[np.float32], front_end: FrontEndConfig) -> NDArray[np.float32]:
    """A clip shorter than a window, filled up as msclap's and LAION-CLAP's loaders fill it.

    ``CLAPWrapper.load_audio_into_tensor`` repeats it and cuts; ``laion_clap/training/data.py`` (repeatpad) tiles it as
    often as it goes in whole.
    """
    length, cut = len(wave_T), front_end.window_samples
    if not 0 < length < cut or front_end.short_clips == "pad":
        return wave_T
    if front_end.short_clips == "repeat":
        return np.tile(wave_T, int(np.ceil(cut / length)))[:cut]
    return np.tile(wave_T, int(cut / length))


def reference_windows(wave_T: NDArray[np.float32], front_end: FrontEndConfig, windows: int) -> torch.Tensor:
    """Peak-normalised, 16-bit, cut to ``windows``: [W, samples]."""
    cut, stride = front_end.window_samples, front_end.stride_samples
    wave_T = filled(wave_T, front_end)
    wave = wave_T[: (windows - 1) * stride + cut].astype(np.float32)
    peak = np.abs(wave).max() if len(wave) else 0.0
    wave = wave / np.float32(peak) if peak > 0 else wave
    wave = np.pad(wave, (0, (windows - 1) * stride + cut - len(wave)))
    pcm = (np.clip(wave, -1, 1) * np.float32(32767.0)).astype(np.int16)
    wave = (pcm / 32767.0).astype(np.float32)
    return torch.stack([torch.from_numpy(wave[i * stride : i * stride + cut]) for i in range(windows)])


def mel_filters(front_end: FrontEndConfig) -> torch.Tensor:
    """[bins, M] triangles; HTK scale without, Slaney scale with area normalisation, in float64."""

    def to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
        if front_end.mel_scale == "htk":
            return 2595.0 * np.log10(1.0 + hz / 700.0)
        return np.where(hz >= 1000, 15 + 27 * np.log(np.maximum(hz, 1e-9) / 1000) / np.log(6.4), hz * 3 / 200)

    def to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
        if front_end.mel_scale == "htk":
            return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
        return np.where(mel >= 15, 1000 * np.exp((mel - 15) * np.log(6.4) / 27), mel * 200 / 3)

    ends = to_mel(np.array([front_end.min_hz, front_end.max_hz]))
    points = to_hz(np.linspace(ends[0], ends[1], front_end.mel_bins + 2))
    rate = front_end.mel_sample_rate or front_end.sample_rate
    bins = np.linspace(0, rate / 2, front_end.fft_size // 2 + 1)
    rise = (bins[:, None] - points[None, :-2]) / np.diff(points)[None, :-1]
    fall = (points[None, 2:] - bins[:, None]) / np.diff(points)[None, 1:]
    filters = np.maximum(0, np.minimum(rise, fall))
    if front_end.mel_scale == "slaney":
        filters *= 2 / (points[2:] - points[:-2])
    return torch.from_numpy(filters).float()


def reference_mel(wave_T: NDArray[np.float32], front_end: FrontEndConfig, windows: int) -> torch.Tensor:
    """[W, F, M] in dB."""
    window_WT = reference_windows(wave_T, front_end, windows)
    spectrum = torch.stft(
        window_WT,
        front_end.fft_size,
        front_end.hop_samples,
        window=torch.hann_window(front_end.fft_size),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    power_WFB = spectrum.abs().square().transpose(1, 2)
    return 10 * torch.log10((power_WFB @ mel_filters(front_end)).clamp(min=1e-10))
