"""From waveforms to dB mel windows, on the CPU or the GPU: by DALI's graph, or by torch where DALI is not installed.

    pipe = MelPipeline(front_end, device="cpu", device_id=None, threads=1)
    mel_WFM = pipe.run([Pcm(wave_T), Flac(data)], num_windows=[3, 1])       # windows of all clips, one after another

The reference (AF2 data/data.py ``load_audio``, src/factory.py) peak-normalises what it loaded, rounds it to 16-bit
integers towards zero, cuts windows, pads the last one with zeros, and makes a centred log-mel of each window on its
own. Both ways here give the same values to about a thousandth of a decibel.

W windows, F frames, M mel bins.
"""

import functools
import importlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from dali_pipes.sound import Flac, Pcm, Sound
from dali_pipes.torch_mel import TorchMel
from megatron_af.config import FrontEndConfig

WINDOWS_AT_ONCE = 64
"""Windows whose mel is made together: a spectrogram of one takes 2 MB, and a step may have thousands."""

__all__ = ["Flac", "MelPipeline", "Pcm"]


class Mels(Protocol):
    """One way of making mel."""

    def run(self, clips: Sequence[Sound], num_windows: Sequence[int]) -> torch.Tensor:
        """Mel windows of at least one clip, in order: float32 [sum(num_windows), F, M], or views [clips, V, F, M].

        Raises:
            RuntimeError: a `Flac` cannot be decoded.
        """

    def close(self) -> None:
        """Gives back threads and buffers."""


@functools.cache
def dali_problem() -> str:
    """Why DALI cannot be used; empty where it imports."""
    try:
        importlib.import_module("nvidia.dali")
    except (ImportError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def slower_mel() -> str:
    """That torch makes the mel, why, and the remedy; empty where DALI does."""
    problem = dali_problem()
    return f"DALI cannot be used ({problem}): torch makes the mel. Install nvidia-dali-cuda130." if problem else ""


class MelPipeline:
    """Clips in, mel windows out.

    Args:
        device: ``cpu`` or ``gpu``: where windows and mel are made (decoding is always on the CPU).
        device_id: ordinal of the GPU.
        threads: threads DALI works with.
    """

    def __init__(self, front_end: FrontEndConfig, *, device: str, device_id: int | None, threads: int) -> None:
        self.front_end = front_end
        self._mels: Mels
        if dali_problem():
            self._mels = TorchMel(front_end, torch.device("cpu" if device == "cpu" else f"cuda:{device_id}"))
        else:
            # Imported only now: DALI need not be there.
            from dali_pipes.graph import DaliMel

            self._mels = DaliMel(front_end, device=device, device_id=device_id, threads=threads)

    def run(self, clips: Sequence[Sound], num_windows: Sequence[int]) -> torch.Tensor:
        """Mel windows of all clips, in order: float32 [sum(num_windows), F, M] on the pipeline's device.

        By ``long_clips: views`` it is [clips, V, F, M] of as much as the windows would cover (``dali_pipes/views.py``).
        A clip shorter than its windows is padded with zeros (than one window: as ``short_clips`` says), a longer one
        is cut. The caller's current stream may use the result at once.

        Raises:
            RuntimeError: a `Flac` cannot be decoded.
        """
        parts = [
            self._mels.run([clips[i] for i in part], [num_windows[i] for i in part]) for part in _parts(num_windows)
        ]
        if not parts:
            return torch.empty(0, *self.front_end.input_shape)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def close(self) -> None:
        """Gives back threads and buffers; it can be used again, from the beginning."""
        self._mels.close()


def _parts(num_windows: Sequence[int]) -> Iterator[list[int]]:
    """Places of consecutive clips that hold at most ``WINDOWS_AT_ONCE`` windows, or a single longer clip."""
    part: list[int] = []
    windows = 0
    for place, count in enumerate(num_windows):
        if part and windows + count > WINDOWS_AT_ONCE:
            yield part
            part, windows = [], 0
        part.append(place)
        windows += count
    if part:
        yield part
