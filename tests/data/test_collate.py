"""Padding, segments and which audio each position sees."""

import torch

from megatron_af.data.collate import PackedRow, Segment, collate, padded_length
from tests.text.toy_tokenizer import toy_tokenizer

TOKENIZER = toy_tokenizer()
A, X = TOKENIZER.audio_id, 7


def test_visible_audio_follows_the_block_triangular_rule() -> None:
    row = PackedRow(
        segments=(
            Segment(ids=[X, A, X, A, X], first_audio=0, num_audios=2, dataset=1),
            Segment(ids=[X, X], dataset=2),
            Segment(ids=[A, X], first_audio=2, num_audios=1, dataset=3),
        ),
        clips=(4, 0, 9),
    )
    rows = collate([row], TOKENIZER, 12)
    assert rows.first_audio_BS[0].tolist() == [0, 0, 0, 0, 0, 0, 0, 2, 2, 0, 0, 0]
    assert rows.last_audio_BS[0].tolist() == [0, 0, 0, 1, 1, -1, -1, 2, 2, -1, -1, -1]
    assert rows.segment_BS[0].tolist() == [0] * 5 + [1] * 2 + [2] * 2 + [-1] * 3
    assert rows.dataset_BS[0].tolist()[:9] == [1] * 5 + [2] * 2 + [3] * 2
    assert rows.ids_BS[0, 9:].tolist() == [TOKENIZER.pad_id] * 3
    assert rows.clips == ((4, 0, 9),)
    immediate = collate([row], TOKENIZER, 12, immediate=True)
    assert immediate.first_audio_BS[0].tolist() == [0, 0, 0, 1, 1, 0, 0, 2, 2, 0, 0, 0]
    assert torch.equal(immediate.last_audio_BS, rows.last_audio_BS)
    assert rows.ids_BS.dtype == rows.labels_BS.dtype == torch.int64
    assert rows.first_audio_BS.dtype == rows.last_audio_BS.dtype == rows.segment_BS.dtype == torch.int32


def test_segments_that_share_clips_all_see_them() -> None:
    row = PackedRow(segments=(Segment(ids=[A, X], num_audios=1), Segment(ids=[A, X], num_audios=1)), clips=(0,))
    rows = collate([row], TOKENIZER, 8)
    assert rows.last_audio_BS[0].tolist() == [0, 0, 0, 0, -1, -1, -1, -1]


def test_padded_length_fits_tensor_parallel_ranks() -> None:
    assert [padded_length(n, m) for n, m in ((1, 1), (8, 2), (9, 1), (30, 3), (0, 16))] == [8, 8, 16, 48, 16]
