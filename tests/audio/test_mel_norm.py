"""Statistics of the mel norm: of the whole global batch while they are learnt, still otherwise."""

import pytest
import torch
from torch import nn

from megatron_af.audio.mel_norm import MelNorm
from tests.distributed import run_distributed


def mel(windows: int = 6) -> torch.Tensor:
    return torch.randn(windows, 50, 8, generator=torch.Generator().manual_seed(3)) * 9 - 30


def learning() -> MelNorm:
    norm = MelNorm(8)
    norm.learns_statistics = True
    return norm


def test_learning_equals_batch_norm():
    ours, torchs = learning(), nn.BatchNorm1d(8)
    torchs.load_state_dict(ours.state_dict())
    for _ in range(3):
        torch.testing.assert_close(ours(mel()), torchs(mel().transpose(1, 2)).transpose(1, 2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict(), rtol=1e-5, atol=1e-4)


def test_parts_by_the_statistics_of_all_are_the_whole():
    whole, parts = learning(), learning()
    expected = whole(mel())
    statistics = parts.statistics(mel())
    with parts.by(statistics):
        torch.testing.assert_close(torch.cat([parts(part) for part in mel().split(2)]), expected, rtol=0, atol=0)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert not torch.equal(parts(mel()[:2]), expected[:2])  # outside of it, its own


def test_statistics_stand_still_unless_learnt_in_training_with_a_trainable_weight():
    for norm in (MelNorm(8), learning().eval(), learning().requires_grad_(False)):
        before = {k: v.clone() for k, v in norm.state_dict().items()}
        norm(mel())
        torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)


def test_computes_in_float32_in_a_bf16_model():
    norm = MelNorm(8)
    expected = norm(mel())
    for parameter in norm.parameters():
        parameter.data = parameter.data.bfloat16()
    assert norm(mel()).dtype == torch.float32
    torch.testing.assert_close(norm(mel()), expected, rtol=0, atol=1e-6)


def _share(rank: int, world: int) -> tuple[torch.Tensor, torch.Tensor]:
    norm = learning()
    share = mel().split([5, 1])[rank]  # unequal on purpose
    return norm(share).detach(), norm.running_var


@pytest.mark.slow
def test_ranks_share_one_batch():
    whole = learning()
    expected = whole(mel())
    results = run_distributed(_share, 2)
    torch.testing.assert_close(torch.cat([r[0] for r in results]), expected, rtol=1e-6, atol=1e-6)
    for _, running_var in results:
        torch.testing.assert_close(running_var, whole.running_var)
