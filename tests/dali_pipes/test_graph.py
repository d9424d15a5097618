"""DALI's graph: what its operators do to single samples, and its outputs beside another stream."""

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from dali_pipes.graph import DaliMel, pcm16, peak_normalised
from dali_pipes.sound import Pcm
from megatron_af.config import FrontEndConfig
from tests.conftest import requires_gpu


def test_prepared_audio_keeps_its_16_bit_steps() -> None:
    """Already peak-normalised 16-bit audio must pass normalising and rounding unchanged, sample by sample."""
    steps = np.concatenate([np.arange(-32_767, 32_768), np.zeros(145_000)]).astype(np.float32)
    ramp = np.random.default_rng(0).permutation(steps)

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def graph() -> DataNode:
        wave = fn.external_source(name="clip", dtype=types.FLOAT, ndim=1)
        return pcm16(peak_normalised(wave))

    pipe = graph()
    pipe.build()
    pipe.feed_input("clip", [ramp / np.float32(32_768)])
    (out,) = pipe.run()
    assert np.array_equal(np.round(np.array(out[0]) * 32_767), ramp)


def test_outputs_stay_as_they_are_while_the_next_ones_are_made() -> None:
    """Each has memory of its own: DALI's older executors would write the next run into it."""
    front_end = FrontEndConfig(window_seconds=1.0)
    mels = DaliMel(front_end, device="cpu", device_id=None, threads=1)
    rng = np.random.default_rng(0)
    waves = [Pcm(rng.uniform(-1, 1, 16_000).astype(np.float32)) for _ in range(4)]
    outputs = [mels._outputs([wave], [1])[0] for wave in waves]
    kept = [torch.utils.dlpack.from_dlpack(mel) for mel in outputs]
    again = [mels.run([wave], [1]) for wave in waves]
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


@requires_gpu
def test_mel_beside_a_busy_stream_is_the_cpus() -> None:
    """While another stream computes, and with memory that is given back and taken again."""
    front_end = FrontEndConfig()
    device = torch.cuda.current_device()
    gpu = DaliMel(front_end, device="gpu", device_id=device, threads=4)
    cpu = DaliMel(front_end, device="cpu", device_id=None, threads=4)
    rng = np.random.default_rng(0)
    busy, matrix = torch.cuda.Stream(), torch.randn(4096, 4096, device="cuda")
    for _ in range(200):
        windows = rng.integers(1, 4, 6).tolist()
        clips = [Pcm(rng.uniform(-1, 1, n * 150_000).astype(np.float32)) for n in windows]
        with torch.cuda.stream(busy):
            matrix = matrix @ matrix / 64
        mel_WFM = gpu.run(clips, windows)
        on_device = mel_WFM * 1  # queued on the caller's stream; then its memory is free
        del mel_WFM
        expected = cpu.run(clips, windows)
        assert (on_device.cpu() - expected).abs().max() < 0.05
        assert (on_device.cpu() - expected).abs().mean() < 1e-4
