"""The DALI graph from a waveform to dB mel windows, on the CPU or the GPU.

    mels = DaliMel(front_end, device="cpu", device_id=None, threads=1)
    mel_WFM = mels.run([Pcm(wave_T), Flac(data)], num_windows=[3, 1])

The windows lie in one signal with their reflected edges, so that one spectrogram serves them all.

T samples, W windows, F frames, M mel bins.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
from numpy.typing import NDArray
from nvidia.dali import fn, math, pipeline_def, types
from nvidia.dali.backend import GetCUDADeviceCount  # type: ignore[attr-defined]
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline

from dali_pipes.sound import FLOOR_DB, INT16_MAX, SILENCE, Flac, Pcm, Sound
from dali_pipes.views import views
from megatron_af.config import FrontEndConfig


class DaliMel:
    """Keeps one DALI pipeline per kind of clip and grows it with the batch.

    On a GPU everything runs on a stream of its own, beside the model's.
    """

    def __init__(self, front_end: FrontEndConfig, *, device: str, device_id: int | None, threads: int) -> None:
        if device == "gpu" and GetCUDADeviceCount() == 0:
            raise RuntimeError("DALI was asked for a GPU but sees none; check the driver and CUDA_VISIBLE_DEVICES")
        self._front_end = front_end
        self._device, self._device_id, self._threads = device, device_id, threads
        self._stream = torch.cuda.Stream(device_id) if device == "gpu" else None  # type: ignore[no-untyped-call]
        self._pipelines: dict[type[Sound], tuple[int, Pipeline]] = {}

    def run(self, clips: Sequence[Sound], num_windows: Sequence[int]) -> torch.Tensor:
        if self._stream is None:
            return self._joined(self._outputs(clips, num_windows))
        caller = torch.cuda.current_stream(self._stream.device)
        with torch.cuda.stream(self._stream):
            mel_WFM = self._joined(self._outputs(clips, num_windows))
            copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            copied.record()
        copied.synchronize()  # from here on DALI may use its buffers again, and every stream may read the copy
        mel_WFM.record_stream(caller)  # its memory goes back to this stream only behind what the caller's has to do
        return mel_WFM

    def close(self) -> None:
        self._pipelines.clear()

    def _joined(self, outputs: Sequence[Any]) -> torch.Tensor:
        """A copy of DALI's tensors, one after another; of whole clips, their views."""
        mels = [torch.utils.dlpack.from_dlpack(mel) for mel in outputs]
        if self._front_end.long_clips == "views":
            return torch.stack([views(mel_FM, self._front_end.window_frames) for mel_FM in mels])
        return torch.cat(mels)

    def _outputs(self, clips: Sequence[Sound], num_windows: Sequence[int]) -> list[Any]:
        """DALI's tensors of the clips, in order: windows [W, F, M], or the whole [F, M]; each owns its memory."""
        found: dict[int, Any] = {}
        for kind in (Pcm, Flac):
            chosen = [i for i, clip in enumerate(clips) if isinstance(clip, kind)]
            if chosen:
                mels = self._run_kind(kind, [clips[i] for i in chosen], [num_windows[i] for i in chosen])
                found |= {i: mels[place] for place, i in enumerate(chosen)}
        return [found[i] for i in range(len(clips))]

    def _run_kind(self, kind: type[Sound], clips: Sequence[Sound], num_windows: Sequence[int]) -> Any:
        size, pipe = self._pipelines.get(kind, (0, None))
        if pipe is None or size < len(clips):
            size = 1 << (len(clips) - 1).bit_length()
            pipe = build(self._front_end, kind, size, self._device, self._device_id, self._threads)
            self._pipelines[kind] = size, pipe
        pipe.feed_input("clip", [_payload(clip) for clip in clips])
        pipe.feed_input("windows", [np.array([n], np.int32) for n in num_windows])
        (mels,) = pipe.run(self._stream)
        return mels


def _payload(clip: Sound) -> NDArray[np.float32] | NDArray[np.uint8]:
    return clip.wave_T if isinstance(clip, Pcm) else np.frombuffer(clip.data, np.uint8)


def build(
    front_end: FrontEndConfig,
    kind: type[Sound],
    batch: int,
    device: str,
    device_id: int | None,
    threads: int,
) -> Pipeline:
    """A DALI pipeline with inputs ``clip`` and ``windows`` and one output: mel [W, F, M] of each clip."""

    @pipeline_def(
        batch_size=batch,
        num_threads=threads,
        device_id=device_id,
        exec_dynamic=True,  # each output has memory of its own, which the next run does not write to
        prefetch_queue_depth=1,  # the caller prefetches whole steps; a second queue here would only hold memory
    )
    def graph() -> DataNode:
        windows = fn.external_source(name="windows", dtype=types.INT32, ndim=1)
        if kind is Pcm:
            wave = fn.external_source(name="clip", dtype=types.FLOAT, ndim=1)
        else:
            data = fn.external_source(name="clip", dtype=types.UINT8, ndim=1)
            wave, _ = fn.decoders.audio(data, dtype=types.FLOAT, downmix=True)
        wave = wave.gpu() if device == "gpu" else wave
        return (whole_mel if front_end.long_clips == "views" else window_mels)(wave, windows, front_end)

    pipe = graph()
    pipe.build()
    return pipe


def window_mels(wave_T: DataNode, windows: DataNode, front_end: FrontEndConfig) -> DataNode:
    """[T] -> dB mel [W, F, M]."""
    cut, stride = front_end.window_samples, front_end.stride_samples
    hop, half, frames = front_end.hop_samples, front_end.fft_size // 2, front_end.window_frames
    parts = -(-cut // stride)  # strides that a window reaches over
    spaced = -(-(cut + 2 * half) // hop) * hop  # a window with its edges, on the grid of frames
    covered = (windows - 1) * stride + cut
    wave_T = _levelled(_resized(_repeated(wave_T, front_end), covered), front_end)
    strides = fn.reshape(_resized(wave_T, (windows - 1 + parts) * stride), shape=[-1, stride], layout="HW")
    shifted = [fn.slice(strides, start=i, shape=windows, axes=[0]) for i in range(parts)]
    window_WT = shifted[0] if parts == 1 else fn.cat(*shifted, axis=1)
    if parts * stride != cut:
        window_WT = fn.slice(window_WT, start=0, shape=cut, axes=[1])
    left = _reversed(fn.slice(window_WT, start=1, end=half + 1, axes=[1]))
    right = _reversed(fn.slice(window_WT, start=cut - 1 - half, end=cut - 1, axes=[1]))
    edged_WT = _resized(fn.cat(left, window_WT, right, axis=1), spaced, axis=1)
    tail = max(0, 2 * half - hop)  # so that the last frame of the last window's grid exists
    signal_T = _resized(fn.reshape(edged_WT, shape=[-1], layout=""), windows * spaced + tail)
    mel_FM = fn.slice(mel_db(signal_T, front_end), start=0, shape=windows * (spaced // hop), axes=[0])
    mel_WFM = fn.reshape(mel_FM, shape=[-1, spaced // hop, front_end.mel_bins], layout="")
    return fn.slice(mel_WFM, start=0, shape=frames, axes=[1])


def whole_mel(wave_T: DataNode, windows: DataNode, front_end: FrontEndConfig) -> DataNode:
    """[T] -> dB mel [F, M] of the whole clip, at least a window and at most what ``windows`` cover."""
    cut, half = front_end.window_samples, front_end.fft_size // 2
    wave_T = _repeated(wave_T, front_end)
    length = math.max(wave_T.shape(dtype=types.INT32)[0], cut)
    covered = math.min(length, (windows - 1) * front_end.stride_samples + cut)
    wave_1T = fn.reshape(_levelled(_resized(wave_T, covered), front_end), shape=[1, -1], layout="HW")
    left = _reversed(fn.slice(wave_1T, start=1, end=half + 1, axes=[1]))
    right = _reversed(fn.slice(wave_1T, start=covered - 1 - half, shape=half, axes=[1]))
    return mel_db(fn.reshape(fn.cat(left, wave_1T, right, axis=1), shape=[-1], layout=""), front_end)


def _levelled(wave_T: DataNode, front_end: FrontEndConfig) -> DataNode:
    """Scaled to the clip's peak or as recorded (``level``), in 16 bits."""
    return pcm16(peak_normalised(wave_T) if front_end.level == "peak" else math.clamp(wave_T, -1.0, 1.0))


def _repeated(wave_T: DataNode, front_end: FrontEndConfig) -> DataNode:
    """A clip shorter than a window, as often as ``short_clips`` says; what is still missing is zero."""
    if front_end.short_clips == "pad":
        return wave_T
    length, cut = math.max(wave_T.shape(dtype=types.INT32)[0], 1), front_end.window_samples
    times = cut // length if front_end.short_clips == "repeat_whole" else (cut + length - 1) // length
    rows = fn.stack(math.max(times, 1), 1)
    return fn.reshape(fn.zeros(shape=rows, dtype=types.FLOAT) + fn.expand_dims(wave_T, axes=[0]), shape=[-1], layout="")


def peak_normalised(wave_T: DataNode) -> DataNode:
    """Scales the largest magnitude to 1; silence stays silent (the reference divides by zero)."""
    peak = fn.reductions.max(math.abs(wave_T), axes=[0])
    return wave_T / math.max(peak, np.float32(SILENCE))


def pcm16(wave_T: DataNode) -> DataNode:
    """Round trip through 16-bit integers, towards zero as numpy's ``astype`` does.

    The factor makes up for the rounding of the division before: samples of prepared audio, which are whole steps
    already, must not fall to the step below.
    """
    steps = math.floor(math.abs(wave_T) * np.float32(INT16_MAX * (1 + 2**-22))) * np.float32(1 / INT16_MAX)
    return math.clamp(wave_T * np.float32(1e38), np.float32(-1), np.float32(1)) * steps  # the sign back


def mel_db(signal_T: DataNode, front_end: FrontEndConfig) -> DataNode:
    """Uncentred log-mel [F, M]: periodic Hann window, power spectrum, 10 log10, floor -100 dB."""
    size = front_end.fft_size
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)  # DALI's own default is another window
    power = fn.spectrogram(
        signal_T,
        nfft=size,
        window_length=size,
        window_step=front_end.hop_samples,
        window_fn=hann.astype("float32").tolist(),
        center_windows=False,
        power=2,
        layout="tf",
    )
    mel = fn.mel_filter_bank(
        power,
        sample_rate=float(front_end.mel_sample_rate or front_end.sample_rate),
        nfilter=front_end.mel_bins,
        freq_low=front_end.min_hz,
        freq_high=front_end.max_hz,
        mel_formula=front_end.mel_scale,
        normalize=front_end.mel_scale == "slaney",
    )
    return fn.to_decibels(mel, multiplier=10.0, reference=1.0, cutoff_db=FLOOR_DB)


def _resized(data: DataNode, length: DataNode | int, axis: int = 0) -> DataNode:
    """Cuts or pads with zeros at the end of ``axis``."""
    return fn.slice(data, start=0, shape=length, axes=[axis], out_of_bounds_policy="pad", fill_values=0.0)


def _reversed(data_WT: DataNode) -> DataNode:
    image = fn.expand_dims(data_WT, axes=2, new_axis_names="C")  # flip works on images
    return fn.squeeze(fn.flip(image, horizontal=1), axes=2)
