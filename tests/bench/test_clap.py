"""The CLAP bench: its rival computes the same, and so does the restated front end."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megatron_af.audio.clap_loss import af_clap_loss
from megatron_af.audio.htsat import HTSAT
from megatron_af.bench import clap
from megatron_af.bench.clap import dense_loss, loss_inputs, mel_window_by_window
from megatron_af.config import EncoderConfig, FrontEndConfig
from tests.audio.mel_reference import log_mel


def test_dense_and_chunked_losses_agree():
    inputs = loss_inputs(64)
    chunked = af_clap_loss(*inputs, chunk=7)
    torch.testing.assert_close(chunked, dense_loss(*inputs), rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(loss(*inputs).sum(), inputs[0])[0] for loss in (af_clap_loss, dense_loss)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_the_restated_front_end_is_the_reference():
    front_end = FrontEndConfig()
    waves = np.random.default_rng(0).uniform(-0.9, 0.9, (2, front_end.window_samples)).astype(np.float32)
    ours = mel_window_by_window(list(waves), front_end)
    torch.testing.assert_close(ours, log_mel(torch.from_numpy(waves), front_end), atol=0.02, rtol=0)


def test_the_part_of_the_limit_is_what_the_encoder_multiplies(monkeypatch):
    monkeypatch.setattr(clap, "_best_seconds", lambda work: work() or 2.0)
    rates = iter((7e8, 8e8, 6e8, 9e8, 1e9, 8e8))
    monkeypatch.setattr(clap, "matmul_rate", lambda *_: next(rates))
    config, front_end = EncoderConfig(embed_dim=16, heads=(1, 2, 4, 8), fusion=False, classes=0), FrontEndConfig()
    found = clap.throughput(config, 3)
    with FlopCounterMode(display=False) as counted, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        HTSAT(front_end, config).eval()(torch.zeros(3, front_end.window_frames, front_end.mel_bins))
    assert found["limit"] == pytest.approx(counted.get_total_flops() / 2.0 / 1e9, rel=0.01)
    assert found["ours"] == found["per_window"] == 3 * front_end.window_seconds / 2.0
