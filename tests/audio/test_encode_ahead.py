"""Sums in float32 whatever the precision, and an encoder that takes any number of windows in the memory of some."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from megatron_af.audio import features
from megatron_af.audio.encode_ahead import EncodeAhead
from megatron_af.audio.features import ClipFeatures
from megatron_af.audio.recompute import recomputed
from megatron_af.data.batch import AudioKeys, StepAudio

TOKENS, WIDTH, ADDED, HIDDEN = 2, 4, 3, 4


class Front(nn.Module):
    """One token per frame; drops windows at random, as drop-path does."""

    tokens_per_window = TOKENS
    feature_dim = WIDTH

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH)).to(dtype)
        self.added_rows = nn.Parameter(torch.ones(ADDED, HIDDEN, dtype=dtype))

    def encode(self, mel_WFM: Tensor) -> Tensor:
        kept_W = torch.rand(len(mel_WFM), 1, 1) > 0.3
        return self.encoder(mel_WFM.to(self.added_rows.dtype)) * kept_W

    def forward(self, features_WLD: Tensor, windows: list[int]) -> Tensor:
        return features_WLD.flatten(0, 1)


def ahead_of(front: Front) -> EncodeAhead:
    groups: Any = SimpleNamespace(model=None, model_size=1, model_rank=0)
    ddp: Any = SimpleNamespace(module=front)
    cpu = torch.device("cpu")
    return EncodeAhead(ddp, groups, cpu, ClipFeatures(front, cpu, front.added_rows.dtype))


def step(windows: tuple[int, ...], micro_batches: int) -> tuple[StepAudio, list[tuple[tuple[int, ...], ...]]]:
    """Every micro-batch is one row that hears all the clips."""
    torch.manual_seed(1)
    audio = StepAudio(
        clip_windows=windows,
        owners=(tuple(range(len(windows))),),
        mel_WFM=torch.randn(sum(windows), TOKENS, WIDTH),
        seconds=1.0,
    )
    return audio, [(tuple(range(len(windows))),)] * micro_batches


@pytest.mark.parametrize("what", ["added_rows", "tokens"])
def test_many_small_gradients_are_not_lost_in_bf16(what: str) -> None:
    """1 + 256 * 2^-9 = 1.5, but in bf16 1 + 2^-9 is 1 again and again."""
    front = Front(torch.bfloat16)
    ahead = ahead_of(front)
    got: list[Tensor] = []
    (audio,) = ahead.forward(*step((1,), 1))
    if what == "tokens":
        assert ahead._own_TD is not None
        ahead._own_TD.register_hook(got.append)
    for use in range(257):  # by micro-batches, or by the chunks of an interleaved stage
        used = ahead.added_rows_NH if what == "added_rows" else audio.tokens_LBD
        (used.to(torch.bfloat16).sum() * (1.0 if use == 0 else 2.0**-9)).backward()
    ahead.backward()
    gradient = front.added_rows.grad if what == "added_rows" else got[0]
    assert gradient is not None and gradient.dtype == torch.bfloat16
    assert torch.equal(gradient, torch.full_like(gradient, 1.5))


def gradients(windows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, list[Tensor | None], int]:
    """Tokens, gradients of the encoder, and the most bytes that its graph held."""
    monkeypatch.setattr(features, "WINDOWS_AT_ONCE", windows_at_once)
    front = Front(torch.float32)
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ahead = ahead_of(front)
    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        (keys,) = ahead.forward(*step((3, 1, 5, 7), 1))
    tokens = keys.tokens_LBD
    tokens.square().sum().backward()
    ahead.backward()
    return tokens.detach(), [p.grad for p in front.encoder.parameters()], sum(held.values())


def test_windows_in_parts_give_the_same_gradients_and_hold_no_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    whole_tokens, whole, whole_bytes = gradients(16, monkeypatch)
    for size in (8, 5):
        tokens, parts, part_bytes = gradients(size, monkeypatch)
        torch.testing.assert_close(tokens, whole_tokens)
        for got, expected in zip(parts, whole, strict=True):
            torch.testing.assert_close(got, expected)
        assert part_bytes < whole_bytes / 3


def test_a_frozen_encoder_is_run_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "WINDOWS_AT_ONCE", 5)
    front = Front(torch.float32)
    front.requires_grad_(False)
    ahead = ahead_of(front)
    sizes: list[int] = []
    front.encoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    (keys,) = ahead.forward(*step((3, 1, 5, 7), 1))
    assert sizes == [5, 5, 5, 1] and not keys.tokens_LBD.requires_grad


def test_an_encoder_that_recomputes_itself_runs_twice_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "WINDOWS_AT_ONCE", 5)
    front = Front(torch.float32)
    encoder, runs = front.encoder, []
    encoder.register_forward_pre_hook(lambda module, inputs: runs.append(len(inputs[0])))
    front.encode = lambda mel_WFM: recomputed(encoder, mel_WFM)  # type: ignore[method-assign]
    ahead = ahead_of(front)
    (keys,) = ahead.forward(*step((3, 1, 5, 7), 1))
    keys.tokens_LBD.sum().backward()
    ahead.backward()
    assert sorted(runs) == sorted([5, 5, 5, 1] * 2)


@pytest.mark.parametrize("trains", [True, False])
def test_a_micro_batch_has_its_tokens_when_it_is_asked_for(trains: bool) -> None:
    """In float32 only as long as gradients are under way; every stage's chunk of the model has a copy of its own."""
    front = Front(torch.bfloat16)
    front.requires_grad_(trains)
    ahead = ahead_of(front)
    keys = ahead.forward(*step((1, 2), 3))
    assert len(keys) == 3 and not any(isinstance(value, AudioKeys) for value in vars(keys).values())
    first, second = keys[1], keys[1]
    assert first.tokens_LBD.data_ptr() != second.tokens_LBD.data_ptr()
    assert first.tokens_LBD.dtype == (torch.float32 if trains else torch.bfloat16)
    assert first.tokens_LBD.requires_grad == trains
    if trains:
        (first.tokens_LBD.sum() + 2 * second.tokens_LBD.sum()).backward()
        assert first.tokens_LBD.grad is None, "handed over"
        assert ahead._gradient_TD is not None and torch.equal(ahead._gradient_TD, torch.full((6, WIDTH), 3.0))
