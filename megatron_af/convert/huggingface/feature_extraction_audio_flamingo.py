"""From a recording to the log-mel windows that the model hears.

    extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
    mel_WFM = extractor.windows("dog.wav")                          # or a waveform with its sampling_rate
    features = extractor(["dog.wav", "rain.flac"])                  # input_features, window_audio of one text

Down-mixed, resampled by soxr, scaled to its peak, rounded to 16 bits, cut into windows that are padded with zeros;
of each a power spectrogram with reflected edges, mel filters, decibels with a floor of -100 dB.

Shapes: T samples, W windows, F frames, M mel bins.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import BatchFeature, SequenceFeatureExtractor

SILENCE = 1e-7
"""A peak below this is silence, which is not scaled."""
RESIDUE = 1e-6
"""What resampling leaves of the peak of a sound that is too high for the new rate."""
INT16_MAX = 32_767.0


class AudioFlamingoFeatureExtractor(SequenceFeatureExtractor):
    """
    Args:
        sampling_rate: Hz that the model hears.
        window_seconds, overlap_seconds: of the windows.
        max_windows: longer recordings are cut.
        fft_size, hop_samples, mel_bins, min_hz, max_hz: of the spectrogram.
        mel_scale: ``htk``, or ``slaney`` with area normalisation.
        mel_sample_rate: Hz that the filters are drawn for; 0: ``sampling_rate``.
    """

    model_input_names = ["input_features", "window_audio"]  # noqa: RUF012 (transformers' own form)

    def __init__(
        self,
        sampling_rate: int = 16_000,
        window_seconds: float = 10.0,
        overlap_seconds: float = 0.0,
        max_windows: int = 30,
        fft_size: int = 1024,
        hop_samples: int = 160,
        mel_bins: int = 64,
        min_hz: float = 50.0,
        max_hz: float = 8_000.0,
        mel_scale: str = "htk",
        mel_sample_rate: int = 0,
        **kwargs: Any,
    ) -> None:
        size = {"feature_size": mel_bins, "padding_value": 0.0}
        super().__init__(sampling_rate=sampling_rate, **size | kwargs)
        self.window_seconds, self.overlap_seconds, self.max_windows = window_seconds, overlap_seconds, max_windows
        self.fft_size, self.hop_samples, self.mel_bins = fft_size, hop_samples, mel_bins
        self.min_hz, self.max_hz = min_hz, max_hz
        self.mel_scale, self.mel_sample_rate = mel_scale, mel_sample_rate

    def __call__(self, audio: Any, sampling_rate: int | None = None, **kwargs: Any) -> BatchFeature:
        """Windows of the recordings that one text hears: ``input_features`` [1, W, F, M], ``window_audio`` [1, W].

        Args:
            audio: a file or a waveform [T], or a list of them.
            sampling_rate: Hz of the waveforms.
        """
        recordings = audio if isinstance(audio, list | tuple) else [audio]
        mels = [self.windows(recording, sampling_rate) for recording in recordings]
        owner = torch.repeat_interleave(torch.arange(len(mels)), torch.tensor([len(mel) for mel in mels]))
        return BatchFeature({"input_features": torch.cat(mels)[None], "window_audio": owner[None]})

    def windows(self, audio: Any, sampling_rate: int | None = None) -> Tensor:
        """dB mel windows [W, F, M] of a file, or of a waveform [T] of ``sampling_rate`` Hz.

        Raises:
            ValueError: a waveform of an unknown rate, or what is no waveform.
        """
        if isinstance(audio, str | Path):
            wave_T, sampling_rate = self._read(audio)
        else:
            wave_T = np.asarray(audio, np.float32)
            if wave_T.ndim != 1 or not len(wave_T):
                raise ValueError(f"audio: expected a file or a mono waveform [samples], got shape {wave_T.shape}")
            if sampling_rate is None:
                raise ValueError(f"sampling_rate: expected the waveform's rate in Hz, got none; {self.sampling_rate}?")
            wave_T = wave_T[: round(self._longest_seconds * sampling_rate)]
        return self._mel(self._cut(torch.from_numpy(self._resampled(wave_T, sampling_rate))))

    @property
    def _longest_seconds(self) -> float:
        return self.window_seconds + (self.max_windows - 1) * (self.window_seconds - self.overlap_seconds)

    def _read(self, path: str | Path) -> tuple[NDArray[np.float32], int]:
        import soundfile

        with soundfile.SoundFile(path) as file:
            wave_TC = file.read(round(self._longest_seconds * file.samplerate), dtype="float32", always_2d=True)
            channels = wave_TC.shape[1]
            return wave_TC @ np.full(channels, 1 / channels, np.float32), file.samplerate

    def _resampled(self, wave_T: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
        if rate == self.sampling_rate:
            return np.ascontiguousarray(wave_T)
        import soxr

        resampled: NDArray[np.float32] = soxr.resample(wave_T, rate, self.sampling_rate, quality="HQ")
        if len(resampled) and np.abs(resampled).max() < RESIDUE * np.abs(wave_T).max():
            resampled[:] = 0  # rounding, which scaled to its peak would be noise
        return resampled

    def _cut(self, wave_T: Tensor) -> Tensor:
        """Windows [W, T], of a wave that was scaled to its peak and rounded to 16 bits towards zero."""
        size = round(self.window_seconds * self.sampling_rate)
        stride = round((self.window_seconds - self.overlap_seconds) * self.sampling_rate)
        count = min(self.max_windows, 1 + -(-max(0, len(wave_T) - size) // stride))
        covered = (count - 1) * stride + size
        wave_T = F.pad(wave_T[:covered], (0, max(0, covered - len(wave_T))))
        scaled_T = wave_T / wave_T.abs().max().clamp(min=SILENCE)
        # The factor makes up for the rounding of the division: whole steps must not fall to the step below.
        steps_T = (scaled_T.abs() * (INT16_MAX * (1 + 2**-22))).floor() * (1 / INT16_MAX)
        return (scaled_T.sign() * steps_T).unfold(0, size, stride)

    def _mel(self, wave_WT: Tensor) -> Tensor:
        spectrum = torch.stft(
            wave_WT,
            self.fft_size,
            self.hop_samples,
            window=torch.hann_window(self.fft_size),
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        power_WFB = spectrum.abs().square().transpose(1, 2)
        return 10 * torch.log10((power_WFB @ self._filters()).clamp(min=1e-10))

    def _filters(self) -> Tensor:
        """Triangles on the mel scale, [fft_size / 2 + 1, M]."""
        to_mel, to_hz = (_htk_mel, _htk_hz) if self.mel_scale == "htk" else (_slaney_mel, _slaney_hz)
        low, high = to_mel(torch.tensor([self.min_hz, self.max_hz], dtype=torch.double)).tolist()
        corners = to_hz(torch.linspace(low, high, self.mel_bins + 2, dtype=torch.double))
        nyquist = (self.mel_sample_rate or self.sampling_rate) / 2
        hz_B1 = torch.linspace(0, nyquist, self.fft_size // 2 + 1, dtype=torch.double)[:, None]
        rising = (hz_B1 - corners[:-2]) / (corners[1:-1] - corners[:-2])
        falling = (corners[2:] - hz_B1) / (corners[2:] - corners[1:-1])
        triangles = torch.minimum(rising, falling).clamp(min=0)
        if self.mel_scale == "slaney":
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
