"""Batch normalisation of the mel bins, the encoder's first layer.

    norm = MelNorm(64)
    norm.learns_statistics = True   # while the encoder is pre-trained contrastively
    normed_WFM = norm(mel_WFM)

The running statistics belong to pre-training: there they are learnt, afterwards they stand still, since
fine-tuning batches are small and padded with silence. Where they are learnt, those of a step are of the
whole global batch, summed over all ranks: the result does not depend on how many ranks share the clips.
The input is data, not activations; hence no gradient flows through the statistics, and one small
all-reduce is all it costs. Who hands windows in part by part takes the statistics of all of them first:

    statistics = norm.statistics(mel_WFM)
    with norm.by(statistics):
        normed_VFM = norm(mel_WFM[:64])
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_af.audio.recompute import WINDOWS_AT_ONCE


class MelNorm(nn.BatchNorm1d):
    """dB mel (W, F, M) -> the same, normalised per bin in float32; state as in ``nn.BatchNorm1d``."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, mel_bins: int) -> None:
        super().__init__(mel_bins)
        self.learns_statistics = False
        # A fresh encoder starts from the level and spread of ordinary recordings, in dB.
        self.running_mean.fill_(-40.0)
        self.running_var.fill_(20.0**2)
        self._taken: tuple[Tensor, Tensor] | None = None

    def forward(self, mel_WFM: Tensor) -> Tensor:
        """Outside of :meth:`by` it takes the statistics of what it is given."""
        mel_WFM = mel_WFM.float()
        mean, var = self._taken or self.statistics(mel_WFM)
        scale = self.weight.float() * torch.rsqrt(var + self.eps)
        return (mel_WFM - mean) * scale + self.bias.float()

    def statistics(self, mel_WFM: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each bin that these windows, all of this rank in the step, are normalised by.

        Where statistics are learnt and the weight trains, it learns them, and is a collective.
        """
        if self.training and self.learns_statistics and self.weight.requires_grad:
            return self._batch_statistics(mel_WFM.detach().float())
        return self.running_mean.float(), self.running_var.float()

    @contextmanager
    def by(self, statistics: tuple[Tensor, Tensor]) -> Iterator[None]:
        """Calls within take these statistics and learn none."""
        self._taken = statistics
        try:
            yield
        finally:
            self._taken = None

    @torch.no_grad()
    def _batch_statistics(self, mel_WFM: Tensor) -> tuple[Tensor, Tensor]:
        sums = torch.zeros(3, mel_WFM.shape[-1], dtype=torch.float64, device=mel_WFM.device)
        for part in torch.split(mel_WFM, WINDOWS_AT_ONCE):
            frames = part.flatten(0, 1).double()  # a difference of squares needs the digits
            total = frames.sum(0)
            sums += torch.stack([torch.full_like(total, len(frames)), total, frames.square().sum(0)])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        count, mean = sums[0], sums[1] / sums[0]
        var = sums[2] / count - mean.square()
        assert self.momentum is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked += 1
        return mean.float(), var.float()
