"""Masks against their definition, position by position."""

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_af.data.batch import AudioKeys
from megatron_af.decoder.masks import KEY_MULTIPLE, Masks, audio_mask, one_segment_each, sees_everything, segment_mask
from tests.decoder.toy import full_audio, mixed_rows, plain_rows

CPU = torch.device("cpu")


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


@settings(max_examples=30, deadline=None)
@given(segments=st.lists(st.integers(0, 2), min_size=1, max_size=8), padding=st.integers(0, 3))
def test_segment_mask_by_definition(segments, padding):
    row = sorted(segments) + [-1] * padding
    found = visible(segment_mask(torch.tensor([row], dtype=torch.int32), torch.float32))[0]
    for s, own in enumerate(row):
        assert found[s].tolist() == [k <= s and row[k] == own for k in range(len(row))]


def test_kernels_without_a_mask_where_none_is_needed():
    assert Masks.of(plain_rows(), full_audio(), torch.float32, CPU) == Masks(None, None)
    rows, audio = mixed_rows(0)
    masks = Masks.of(rows, audio, torch.bfloat16, CPU)
    assert masks.attention_B1SS.shape == (4, 1, 16, 16) and masks.audio_B1SL.shape == (4, 1, 16, 16)
    assert masks.audio_B1SL.dtype == torch.bfloat16


def test_padding_text_needs_no_mask_but_padding_keys_do():
    rows, audio = plain_rows(), full_audio()
    segment, last = rows.segment_BS.clone(), rows.last_audio_BS.clone()
    segment[0, -3:], last[0, -3:] = -1, -1
    padded = dataclasses.replace(rows, segment_BS=segment, last_audio_BS=last)
    assert one_segment_each(padded) and sees_everything(padded, audio)
    blind = dataclasses.replace(rows, last_audio_BS=last)
    assert not sees_everything(blind, audio), "text that must not hear"
    audio_of = audio.audio_of_BL.clone()
    audio_of[1, -1] = -1
    assert not sees_everything(rows, AudioKeys(tokens_LBD=audio.tokens_LBD, audio_of_BL=audio_of))
    audio_of[1, -1] = 1
    assert not sees_everything(rows, AudioKeys(tokens_LBD=audio.tokens_LBD, audio_of_BL=audio_of))
