"""Windows and mel in torch: the values of DALI's graph, where DALI is not installed.

Slower, and without decoding on threads of its own: meant for machines that have torch alone.

T samples, W windows, F frames, M mel bins, B bins of the spectrum.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dali_pipes.flac import flac_samples
from dali_pipes.sound import FLOOR_DB, INT16_MAX, SILENCE, Pcm, Sound
from dali_pipes.views import views
from megatron_af.config import FrontEndConfig


class TorchMel:
    def __init__(self, front_end: FrontEndConfig, device: torch.device) -> None:
        self.front_end, self._device = front_end, device

    def run(self, clips: Sequence[Sound], num_windows: Sequence[int]) -> Tensor:
        cut = [self._cut(self._wave(clip), count) for clip, count in zip(clips, num_windows, strict=True)]
        if self.front_end.long_clips == "views":
            return torch.stack([views(self._mel(wave_T[None])[0], self.front_end.window_frames) for wave_T in cut])
        window, stride = self.front_end.window_samples, self.front_end.stride_samples
        return self._mel(torch.cat([wave_T.unfold(0, window, stride) for wave_T in cut]))

    def close(self) -> None:
        """Nothing is held between two calls."""

    def _wave(self, clip: Sound) -> Tensor:
        if isinstance(clip, Pcm):
            return torch.from_numpy(clip.wave_T).to(self._device)
        # Imported only now: libsndfile need not be there for what is decoded already.
        from dali_pipes.waves import AudioError, read_wave

        rate = self.front_end.sample_rate
        try:
            wave_T = read_wave(clip.data, start=0, duration=flac_samples(clip.data) / rate, sample_rate=rate)
        except AudioError as error:
            raise RuntimeError(str(error)) from error
        return torch.from_numpy(wave_T).to(self._device)

    def _cut(self, wave_T: Tensor, count: int) -> Tensor:
        """What ``count`` windows cover, scaled to the clip's peak (``level``) and rounded to 16 bits towards zero; of
        a clip in views no more than there is, but a window."""
        cut, stride = self.front_end.window_samples, self.front_end.stride_samples
        covered = (count - 1) * stride + cut
        wave_T = self._repeated(wave_T)[:covered]
        if self.front_end.long_clips == "views":
            covered = max(len(wave_T), cut)
        wave_T = F.pad(wave_T, (0, covered - len(wave_T)))
        peak = wave_T.abs().max().clamp(min=SILENCE)
        scaled_T = wave_T / peak if self.front_end.level == "peak" else wave_T.clamp(-1, 1)
        # The factor makes up for the rounding of the division: whole steps must not fall to the step below.
        steps_T = (scaled_T.abs() * (INT16_MAX * (1 + 2**-22))).floor() * (1 / INT16_MAX)
        return scaled_T.sign() * steps_T

    def _repeated(self, wave_T: Tensor) -> Tensor:
        """A clip shorter than a window, as often as ``short_clips`` says."""
        cut, how = self.front_end.window_samples, self.front_end.short_clips
        if how == "pad" or not 0 < len(wave_T) < cut:
            return wave_T
        return wave_T.repeat(cut // len(wave_T) if how == "repeat_whole" else -(-cut // len(wave_T)))[:cut]

    def _mel(self, wave_WT: Tensor) -> Tensor:
        """[W, F, M] in dB: periodic Hann window, power spectrum, 10 log10."""
        size, hop = self.front_end.fft_size, self.front_end.hop_samples
        hann = torch.hann_window(size, device=wave_WT.device)
        spectrum = torch.stft(wave_WT, size, hop, window=hann, center=True, pad_mode="reflect", return_complex=True)
        power_WFB = spectrum.abs().square().transpose(1, 2)
        filters_BM = mel_filters(self.front_end).to(wave_WT.device)
        return 10 * torch.log10((power_WFB @ filters_BM).clamp(min=10 ** (FLOOR_DB / 10)))


@functools.cache
def mel_filters(front_end: FrontEndConfig) -> Tensor:
    """[B, M]: triangles in Hz between corners that lie evenly on the mel scale."""
    to_mel, to_hz = (_htk_mel, _htk_hz) if front_end.mel_scale == "htk" else (_slaney_mel, _slaney_hz)
    low, high = to_mel(torch.tensor([front_end.min_hz, front_end.max_hz], dtype=torch.double)).tolist()
    corners = to_hz(torch.linspace(low, high, front_end.mel_bins + 2, dtype=torch.double))
    nyquist = (front_end.mel_sample_rate or front_end.sample_rate) / 2
    hz_B1 = torch.linspace(0, nyquist, front_end.fft_size // 2 + 1, dtype=torch.double)[:, None]
    rising = (hz_B1 - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - hz_B1) / (corners[2:] - corners[1:-1])
    triangles = torch.minimum(rising, falling).clamp(min=0)
    if front_end.mel_scale == "slaney":
        triangles = triangles * (2 / (corners[2:] - corners[:-2]))
    return triangles.float()


def _htk_mel(hz: Tensor) -> Tensor:
    return 2595 * torch.log10(1 + hz / 700)


def _htk_hz(mel: Tensor) -> Tensor:
    return 700 * (10 ** (mel / 2595) - 1)


def _slaney_mel(hz: Tensor) -> Tensor:
    """Linear below 1,000 Hz, where 15 mel lie; logarithmic above."""
    return torch.where(hz < 1000, hz * 3 / 200, 15 + torch.log(hz.clamp(min=1) / 1000) * 27 / np.log(6.4))


def _slaney_hz(mel: Tensor) -> Tensor:
    return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * np.log(6.4) / 27))
