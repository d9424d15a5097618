"""Places in packed rows, and the rows of the table that stand for them."""

import pytest
import torch

from megatron_af.decoder.positions import LearntPositions, segment_positions
from megatron_af.decoder.transformer_config import transformer_config
from megatron_af.parallel.device import current_device
from tests.decoder.toy import HIDDEN, toy_config


def test_places_are_counted_in_each_segment_anew() -> None:
    segment_BS = torch.tensor([[0, 0, 0, 1, 1, 2, -1, -1], [0, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.int32)
    assert segment_positions(segment_BS).tolist() == [[0, 1, 2, 0, 1, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert segment_positions(segment_BS[:, :0]).shape == (2, 0)


def test_the_first_place_is_the_row_behind_the_offset() -> None:
    config = toy_config(lm={"family": "opt", "kv_heads": 4})
    positions = LearntPositions(10, 2, transformer_config(config, current_device()))
    found_SBH = positions(torch.tensor([[0], [7]]))
    assert torch.equal(found_SBH[:, 0], positions.weight[[2, 9]]) and found_SBH.shape == (2, 1, HIDDEN)


def test_a_text_longer_than_the_table_is_refused() -> None:
    config = toy_config(lm={"family": "opt", "kv_heads": 4})
    positions = LearntPositions(10, 2, transformer_config(config, current_device()))
    positions.check(torch.tensor([[7, 0]]))
    with pytest.raises(ValueError, match="a text of 9 tokens: the language model has learnt 8 positions"):
        positions.check(torch.tensor([[8, 0]]))
