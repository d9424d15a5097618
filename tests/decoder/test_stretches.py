"""Stretches against the definition of what each position sees."""

import dataclasses
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_af.decoder.stretches import Sight, Stretches, one_segment_each
from tests.decoder.toy import full_audio, mixed_rows, plain_rows
from tests.decoder.visible import audio_visible, text_visible


def shown(stretches: Stretches, positions: int, keys: int, *, causal: bool) -> Tensor:
    """[T, K] of stretches."""
    index_K = torch.arange(keys) if stretches.index_K is None else stretches.index_K
    visible = torch.zeros(positions, keys, dtype=torch.bool)
    assert sum(stretches.queries) == positions and sum(stretches.keys) == len(index_K)
    position = key = 0
    for count, seen in zip(stretches.queries, stretches.keys, strict=True):
        for t in range(count):
            visible[position + t, index_K[key : key + (t + 1 if causal and seen else seen)]] = True
        position, key = position + count, key + seen
    bounds = torch.tensor([[0, *stretches.queries], [0, *stretches.keys]]).cumsum(1)
    assert torch.equal(stretches.bounds_2E.long(), bounds) and stretches.bounds_2E.dtype == torch.int32
    return visible


@st.composite
def packed(draw: Any) -> Tensor:
    length = draw(st.integers(1, 9))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        padding = draw(st.integers(0, length))
        segments = sorted(draw(st.lists(st.integers(0, 2), min_size=length - padding, max_size=length - padding)))
        rows.append(segments + [-1] * padding)
    return torch.tensor(rows, dtype=torch.int32)


@settings(max_examples=80, deadline=None)
@given(segment_BS=packed())
def test_text_by_definition(segment_BS: Tensor) -> None:
    found = Stretches.of_text(segment_BS)
    assert torch.equal(shown(found, segment_BS.numel(), segment_BS.numel(), causal=True), text_visible(segment_BS))


@settings(max_examples=120, deadline=None)
@given(data=st.data(), batch=st.integers(1, 3), length=st.integers(1, 7), keys=st.integers(1, 9))
def test_audio_by_definition(data: Any, batch: int, length: int, keys: int) -> None:
    def draw(low: int, count: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, 2), min_size=count, max_size=count))

    rows = plain_rows(batch, length)
    first, last = (torch.tensor([draw(-1, length) for _ in range(batch)], dtype=torch.int32) for _ in range(2))
    rows = dataclasses.replace(rows, first_audio_BS=first, last_audio_BS=last)
    audio_of = torch.full((batch, keys), -1, dtype=torch.int32)
    for row in audio_of:
        count = data.draw(st.integers(0, keys))
        row[:count] = torch.tensor(sorted(draw(0, count)), dtype=torch.int32)
    found = Stretches.of_audio(rows, audio_of)
    visible = audio_visible(rows, audio_of)
    assert torch.equal(shown(found, batch * length, batch * keys, causal=False), visible)
    assert found.scores == int(visible.sum())


def test_keys_are_copied_only_where_several_stretches_see_them() -> None:
    rows, audio = mixed_rows(0)
    assert Stretches.of_audio(rows, audio.audio_of_BL).index_K is not None, "one audio, then both"
    last = rows.last_audio_BS.clone()
    last[1, :-3] = 1
    rows = dataclasses.replace(rows, last_audio_BS=last)
    assert Stretches.of_audio(rows, audio.audio_of_BL).index_K is None


def test_questions_about_the_same_audio_are_one_stretch() -> None:
    segment = torch.arange(16, dtype=torch.int32).expand(2, 16) // 4
    heard = segment // 2
    rows = dataclasses.replace(plain_rows(), segment_BS=segment, first_audio_BS=heard, last_audio_BS=heard)
    audio_of = torch.arange(12, dtype=torch.int32).expand(2, 12) // 6
    sight = Sight.of(rows, audio_of)
    assert sight.text is not None and sight.text.queries == (4,) * 8
    assert sight.audio is not None and (sight.audio.queries, sight.audio.keys) == ((8,) * 4, (6,) * 4)


def test_plain_kernels_where_nothing_is_hidden() -> None:
    rows = plain_rows()
    segment = rows.segment_BS.clone()
    segment[0, -3:] = -1
    for each in (rows, dataclasses.replace(rows, segment_BS=segment)):
        sight = Sight.of(each, full_audio().audio_of_BL)
        assert sight.text is None and sight.audio is None and sight.tensors == []
        assert one_segment_each(each)
    mixed, audio = mixed_rows(0)
    sight = Sight.of(mixed, audio.audio_of_BL)
    assert not one_segment_each(mixed) and len(sight.tensors) == 3
    assert sight.qkv_format == "sbhd" and sight.max_seqlen_q == sight.max_seqlen_kv == 16
