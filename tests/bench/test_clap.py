"""The CLAP bench: its rival computes the same, and so does the restated front end."""

import numpy as np
import torch

from megatron_af.audio.clap_loss import af_clap_loss
from megatron_af.bench.clap import dense_loss, loss_inputs, mel_window_by_window
from megatron_af.config import FrontEndConfig
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
