"""The audio side: clips of many lengths cost what they hold, and give what each one gives alone."""

import random

import pytest
import torch

from megatron_af.config import ConfigError
from megatron_af.model import PADDING, AudioFront, Vocabulary, build, length_groups
from megatron_af.parallel.device import current_device
from tests import tiny

MIXED = (1, 1, 7, 2, 1, 3, 1, 30, 1, 2, 1, 1, 17, 1)
"""Windows of a step's clips: most have one, the longest thirty."""


def front() -> AudioFront:
    torch.manual_seed(0)
    return AudioFront(tiny.config(), tiny.VOCABULARY)


def features(side: AudioFront, windows: tuple[int, ...]) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(sum(windows), side.tokens_per_window, side.feature_dim, requires_grad=True)


@pytest.mark.parametrize("windows", [MIXED, (20, 19, 20, 18), (2, 2, 2), (3,)], ids=["mixed", "near", "equal", "one"])
def test_clips_together_are_clips_alone(windows: tuple[int, ...]) -> None:
    side = front()
    together_WLD, alone_WLD = features(side, windows), features(side, windows)
    tokens_TD = side(together_WLD, windows)
    expected_TD = torch.cat([side(clip, [len(clip)]) for clip in alone_WLD.split(list(windows))])
    weight_TD = torch.randn(tokens_TD.shape)
    found = torch.autograd.grad((tokens_TD * weight_TD).sum(), [together_WLD, *side.transform.parameters()])
    wanted = torch.autograd.grad((expected_TD * weight_TD).sum(), [alone_WLD, *side.transform.parameters()])
    torch.testing.assert_close(tokens_TD, expected_TD, rtol=1e-5, atol=1e-5)
    for gradient, expected in zip(found, wanted, strict=True):
        assert float((gradient - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("windows", [MIXED, (1,) * 70], ids=["mixed", "many short ones"])
def test_of_many_windows_nothing_is_kept_but_what_goes_in_and_comes_out(
    windows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def learn() -> tuple[torch.Tensor, list[torch.Tensor], int]:
        """Tokens, gradients, and the bytes that the layers' graph holds."""
        side, held = front(), {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        features_WLD = features(side, windows)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            tokens_TD = side(features_WLD, windows)
        gradients = torch.autograd.grad(tokens_TD.square().sum(), [features_WLD, *side.transform.parameters()])
        return tokens_TD, list(gradients), sum(held.values())

    found_TD, found, few = learn()
    monkeypatch.setattr("megatron_af.model.WINDOWS_AT_ONCE", 100)
    wanted_TD, wanted, all_of_them = learn()
    torch.testing.assert_close(found_TD, wanted_TD)
    for gradient, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, expected)
    assert few < all_of_them / 5


def test_a_long_clip_pads_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    side = front()
    positions: list[int] = []
    side.transform.register_forward_hook(lambda module, given, made: positions.append(made.shape[0] * made.shape[1]))
    side(features(side, MIXED), MIXED)
    own = sum(MIXED) * side.tokens_per_window
    assert own <= sum(positions) <= (1 + PADDING) * own
    assert len(positions) <= len(set(MIXED)), "clips of one length share a call"


def test_groups_hold_every_clip_once_within_their_budget() -> None:
    draw = random.Random(0)
    for _ in range(200):
        windows = [draw.choice((1, 1, 1, 2, 3, draw.randint(1, 30))) for _ in range(draw.randint(1, 40))]
        groups = length_groups(windows, at_once=10**6)
        assert sorted(clip for group in groups for clip in group) == list(range(len(windows)))
        assert len(groups) <= len(set(windows))
        for group in groups:
            own = [windows[clip] for clip in group]
            assert max(own) * len(own) <= (1 + PADDING) * sum(own)
        small = length_groups(windows, at_once=8)
        assert sorted(clip for group in small for clip in group) == list(range(len(windows)))
        assert all(len(group) == 1 or len(group) * max(windows[clip] for clip in group) <= 8 for group in small)
    assert length_groups([20, 19, 20, 18], at_once=80) == [[0, 2, 1, 3]], "a little padding saves a call"


def test_a_rank_without_clips_has_no_tokens() -> None:
    side = front()
    assert side(features(side, ()), ()).shape == (0, side.feature_dim)


def test_a_tokenizer_with_more_words_than_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.lm.vocab = 90: data.tokenizer has 91 words"):
        build(tiny.config(), Vocabulary(first_added_id=91, num_added=4), current_device())
