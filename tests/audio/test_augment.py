"""SpecAugment and mix-up: what they change, and that evaluation leaves everything alone."""

import torch
from torch import nn

from megatron_af.audio.augment import SpecAugment, draw_mix_up, mix, set_augment
from megatron_af.config import AugmentConfig, FrontEndConfig


def test_spec_augment_blanks_whole_stripes_of_bounded_width():
    torch.manual_seed(0)
    augment = SpecAugment.of(FrontEndConfig(), on=True)
    out = augment(torch.ones(200, 1001, 64))
    blank_frames = (out == 0).all(2).sum(1)
    blank_bins = (out == 0).all(1).sum(1)
    assert ((out == 0) == ((out == 0).all(2, keepdim=True) | (out == 0).all(1, keepdim=True))).all()
    assert 0 < blank_frames.float().mean() < 2 * 63
    assert blank_frames.max() <= 2 * 63
    assert 0 < blank_bins.float().mean() < 2 * 7
    assert blank_bins.max() <= 2 * 7
    assert len(blank_frames.unique()) > 20  # each window its own
    assert torch.equal(augment.eval()(torch.ones(2, 9, 8)), torch.ones(2, 9, 8))
    assert augment.train()(torch.ones(0, 9, 8)).shape == (0, 9, 8)


def test_a_short_window_loses_no_larger_part_of_its_time():
    """64 frames of 1001 are as many of 10 s as 6 are of one second, which 64 would leave little of."""
    torch.manual_seed(0)
    augment = SpecAugment.of(FrontEndConfig(window_seconds=1.0), on=True)
    blank_frames = (augment(torch.ones(400, 101, 64)) == 0).all(2).sum(1)
    assert blank_frames.float().mean() > 0 and blank_frames.max() <= 2 * 5


def test_a_stage_says_in_seconds_what_is_blanked():
    """Stripes of up to 0.05 s are 5 frames of 10 ms, also where those are of another length."""
    torch.manual_seed(0)
    for hop, most in ((160, 5), (320, 2)):
        front_end = FrontEndConfig(window_seconds=1.0, hop_samples=hop)
        network = nn.Sequential(SpecAugment.of(front_end, on=True))
        set_augment(network, None, front_end)
        assert network[0].bins == 8, "what it was built with"
        set_augment(network, AugmentConfig(time_seconds=0.05), front_end)
        out = network(torch.ones(400, front_end.window_frames, 64))
        blank_frames = (out == 0).all(2).sum(1)
        assert blank_frames.max() == 2 * most and not (out == 0).all(1).any()
        set_augment(network, AugmentConfig(mel_bins=1), front_end)
        out = network(torch.ones(400, 101, 64))
        assert (out == 0).all(1).sum(1).max() == 2 and not (out == 0).all(2).any()
        set_augment(network, AugmentConfig(), front_end)
        assert (network(torch.ones(9, 101, 64)) == 1).all()


def test_mix_up_adds_powers_and_keeps_the_larger_share():
    partner, share = draw_mix_up(5, 0.5, torch.device("cpu"))
    assert partner.tolist() == [4, 0, 1, 2, 3]
    assert ((share >= 0.5) & (share <= 1)).all()
    quiet_and_loud = torch.tensor([-90.0, 0.0])[:, None, None].expand(2, 3, 4)
    mixed = mix(quiet_and_loud, torch.tensor([1, 0]), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(mixed, torch.full((2, 3, 4), -3.0103), atol=1e-3, rtol=0)
    alone, all_of_it = draw_mix_up(1, 0.5, torch.device("cpu"))
    torch.testing.assert_close(mix(quiet_and_loud[:1], alone, all_of_it), quiet_and_loud[:1])
