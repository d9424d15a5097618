"""The mel that needs torch alone (its values: ``test_mel.py``)."""

import subprocess
import sys
import textwrap

import pytest
import torch

from dali_pipes.torch_mel import TorchMel, mel_filters
from megatron_af.config import FrontEndConfig
from tests.dali_pipes import reference


@pytest.mark.parametrize("scale", ["htk", "slaney"])
@pytest.mark.parametrize("rate", [0, 32_000])
def test_filters_are_the_references(scale: str, rate: int) -> None:
    front_end = FrontEndConfig(sample_rate=44_100, mel_sample_rate=rate, mel_scale=scale, max_hz=14_000.0)  # type: ignore[arg-type]
    torch.testing.assert_close(mel_filters(front_end), reference.mel_filters(front_end))


def test_prepared_audio_keeps_its_16_bit_steps() -> None:
    """Already peak-normalised 16-bit audio must pass normalising and rounding unchanged, sample by sample."""
    steps = torch.cat([torch.arange(-32_767, 32_768), torch.zeros(94_465)]).float()
    mels = TorchMel(FrontEndConfig(), torch.device("cpu"))
    window_T = mels._cut(steps / 32_768, 1)
    assert torch.equal((window_T * 32_767).round(), steps)


@pytest.mark.slow
def test_it_stands_in_where_dali_is_not_installed() -> None:
    program = """
        import sys
        sys.modules["nvidia.dali"] = None
        import numpy as np
        from dali_pipes.mel import MelPipeline, Pcm, dali_problem
        from megatron_af.config import FrontEndConfig
        pipe = MelPipeline(FrontEndConfig(window_seconds=1.0), device="cpu", device_id=None, threads=1)
        print(tuple(pipe.run([Pcm(np.ones(9_000, np.float32))], [1]).shape), bool(dali_problem()))
    """
    run = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1, 101, 64) True", done.stderr
