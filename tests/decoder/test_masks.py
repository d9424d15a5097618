"""Masks against their definition, position by position."""

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_af.decoder.masks import KEY_MULTIPLE, audio_mask, sees_everything
from tests.decoder.toy import full_audio, plain_rows


def visible(mask: Tensor) -> Tensor:
    assert set(mask.unique().tolist()) <= {0.0, float("-inf")}
    return (mask == 0)[:, 0]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), batch=st.integers(1, 3), length=st.integers(1, 6), keys=st.integers(1, 18))
def test_audio_mask_by_definition(data, batch, length, keys):
    def draw(low: int, high: int, *shape: int) -> Tensor:
        number = st.integers(low, high)
        size = torch.Size(shape).numel()
        values = data.draw(st.lists(number, min_size=size, max_size=size))
        return torch.tensor(values, dtype=torch.int32).view(shape)

    first, last = draw(-1, 2, batch, length), draw(-1, 2, batch, length)
    audio_of = draw(-1, 2, batch, keys)
    found = visible(audio_mask(first, last, audio_of, torch.float32))
    assert found.shape[-1] % KEY_MULTIPLE == 0 and keys < found.shape[-1] <= keys + KEY_MULTIPLE
    for b in range(batch):
        for s in range(length):
            expected = [k >= 0 and first[b, s] <= k <= last[b, s] for k in audio_of[b].tolist()]
            assert found[b, s, :keys].tolist() == expected
            assert found[b, s, keys] == (not any(expected)), "the null key"
            assert not found[b, s, keys + 1 :].any()


def test_padding_text_needs_no_mask_but_padding_keys_do():
    rows, audio_of = plain_rows(), full_audio().audio_of_BL
    segment, last = rows.segment_BS.clone(), rows.last_audio_BS.clone()
    segment[0, -3:], last[0, -3:] = -1, -1
    padded = dataclasses.replace(rows, segment_BS=segment, last_audio_BS=last)
    assert sees_everything(rows, audio_of) and sees_everything(padded, audio_of)
    blind = dataclasses.replace(rows, last_audio_BS=last)
    assert not sees_everything(blind, audio_of), "text that must not hear"
    audio_of = audio_of.clone()
    audio_of[1, -1] = -1
    assert not sees_everything(rows, audio_of)
    audio_of[1, -1] = 1
    assert not sees_everything(rows, audio_of)
